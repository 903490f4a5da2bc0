// The graph as arrays, and what can be counted in it once: shares, influences, ranks. Nothing here draws.
const CircuitModel = (() => {
  const FEATURE = 0, ERROR = 1, TOKEN = 2, TARGET = 3, OTHER = 4;

  function build(data) {
    const { nodes, links, file, evidence, tokens } = data;
    const n = nodes.length;
    const m = links.source.length;
    const source = Int32Array.from(links.source);
    const target = Int32Array.from(links.target);
    const weight = Float64Array.from(links.weight, (value) => value ?? 0);
    const kind = Uint8Array.from(nodes, (node) => node[0]);
    const position = Int32Array.from(nodes, (node) => node[2]);
    const raw = file.nodes;

    // Rows: tokens at the bottom, then the layers, targets on top.
    const row = Int32Array.from(nodes, (node, i) =>
      kind[i] === TOKEN ? 0 : kind[i] === TARGET ? data.layers + 1 : Math.min(node[1], data.layers - 1) + 1);

    // What enters a node: all of it where the file says, else all that is here.
    const total = new Float64Array(n);
    for (let l = 0; l < m; l++) total[target[l]] += Math.abs(weight[l]);
    const here = Float64Array.from(total);
    for (let i = 0; i < n; i++) {
      const said = raw[i].input_total;
      if (typeof said === "number" && said > total[i]) total[i] = said;
    }
    const share = new Float64Array(m);
    for (let l = 0; l < m; l++) share[l] = total[target[l]] > 0 ? Math.abs(weight[l]) / total[target[l]] : 0;

    const into = index(target, n, share);
    const out = index(source, n, share);
    const { influence, reach } = influences();
    const linkRank = ranks(Float64Array.from(share, (value, l) => value * reach[target[l]]));
    const own = ranks(influence);
    const rank = Float64Array.from(nodes, (_, i) => (kind[i] === TARGET ? 0 : raw[i].influence ?? own[i]));
    // The strongest links first, for what there is no room to draw all of.
    const order = Int32Array.from(source.keys()).sort((a, b) => linkRank[a] - linkRank[b]);
    const byId = new Map(raw.map((node, i) => [node.node_id, i]));

    // w (A + A² + …), from the targets down: a node's turn comes when all that it flows into has had its own.
    function influences() {
      const found = new Float64Array(n);
      const all = new Float64Array(n);
      const ends = [...kind.keys()].filter((i) => kind[i] === TARGET);
      const odds = ends.map((i) => raw[i].token_prob ?? 0);
      const known = odds.every((value) => value > 0);
      ends.forEach((i, k) => { all[i] = known ? odds[k] : 1 / ends.length; });
      const waiting = Int32Array.from(kind, (_, i) => out.start[i + 1] - out.start[i]);
      const ready = [...kind.keys()].filter((i) => !waiting[i]);
      while (ready.length) {
        const i = ready.pop();
        all[i] += found[i];
        for (const l of into.of(i)) {
          found[source[l]] += share[l] * all[i];
          if (!--waiting[source[l]]) ready.push(source[l]);
        }
      }
      return { influence: found, reach: all };
    }

    function known(i) {
      return kind[i] === FEATURE ? evidence[`${nodes[i][1]}_${nodes[i][3]}`] : undefined;
    }

    return {
      n, m, source, target, weight, share, kind, position, row, total, here, into, out, rank, linkRank, order, byId,
      rows: data.layers + 2, tokens, raw, nodes, known,
      id: (i) => raw[i].node_id,
      layer: (i) => nodes[i][1],
      feature: (i) => nodes[i][3],
      label: (i) => nodes[i][4],
      page(i) {
        const base = kind[i] === FEATURE ? data.pages[String(nodes[i][1])] : undefined;
        return base === undefined || nodes[i][3] === null ? null : base + nodes[i][3];
      },
      token: (i) => tokens[position[i]] ?? `#${position[i]}`,
      // What the links that are here hold of all that enters a node.
      shown: (i) => (total[i] > 0 ? here[i] / total[i] : 1),
      difference: data.difference ?? null,
    };
  }

  // Links by one of their ends, the strongest first.
  function index(ends, n, share) {
    const start = new Int32Array(n + 1);
    for (const end of ends) start[end + 1]++;
    for (let i = 0; i < n; i++) start[i + 1] += start[i];
    const links = Int32Array.from(ends.keys()).sort((a, b) => ends[a] - ends[b] || share[b] - share[a]);
    return { start, of: (i) => links.subarray(start[i], start[i + 1]) };
  }

  // Of each value, the share of the sum that it and the larger ones hold: small is important.
  function ranks(values) {
    const order = Int32Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
    const sum = values.reduce((a, b) => a + b, 0);
    const out = new Float64Array(values.length).fill(1);
    let held = 0;
    for (const i of order) {
      held += values[i];
      if (sum > 0) out[i] = Math.min(1, held / sum);
    }
    return out;
  }

  // What of the graph is shown: nodes by their influence, links by theirs and by their ends. Pins stay.
  function visible(model, view) {
    const node = new Uint8Array(model.n);
    const pinned = new Set(view.pinned);
    let nodes = 0, links = 0;
    for (let i = 0; i < model.n; i++) {
      const always = model.kind[i] === TOKEN || model.kind[i] === TARGET || pinned.has(i) || i === view.selected;
      node[i] = always || (model.rank[i] <= view.nodeThreshold && (view.errors || model.kind[i] !== ERROR)) ? 1 : 0;
      nodes += node[i];
    }
    const link = new Uint8Array(model.m);
    for (let l = 0; l < model.m; l++) {
      link[l] = node[model.source[l]] && node[model.target[l]] && model.linkRank[l] <= view.linkThreshold ? 1 : 0;
      links += link[l];
    }
    return { node, link, nodes, links };
  }

  return { FEATURE, ERROR, TOKEN, TARGET, OTHER, build, visible };
})();
