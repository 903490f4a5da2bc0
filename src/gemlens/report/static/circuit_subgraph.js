// The pinned nodes on their own, groups as one box each: rows by layer, left to right by position, all of it draggable.
const CircuitSubgraph = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const BOX = { height: 34, gapX: 18, gapY: 46, most: 190, pad: 14 };
  const EDGE = 26;
  const { FEATURE, ERROR, TOKEN, TARGET } = CircuitModel;
  const { number } = CircuitPanel;

  function svg(tag, attributes, text) {
    const made = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes ?? {})) made.setAttribute(name, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function make(model, state, names, host, act) {
    const pen = document.createElement("canvas").getContext("2d");
    const marked = new Set(); // boxes chosen to be grouped, by key
    let items = [], places = new Map(), drag = null;

    function collect() {
      const { view } = state;
      const grouped = new Set(view.groups.flatMap((group) => group.members));
      const single = view.pinned.filter((i) => !grouped.has(i)).map((i) => ({
        key: model.id(i), members: [i], label: names.title(i), group: null,
        under: model.kind[i] === FEATURE && names.short(i) !== names.place(i) ? `${names.place(i)} · ${model.token(i)}`
          : model.kind[i] === FEATURE || model.kind[i] === ERROR ? model.token(i) : "",
      }));
      const several = view.groups.map((group, g) => ({
        key: `g:${[...group.members].sort((a, b) => a - b).map(model.id).join(",")}`, members: group.members, group: g,
        label: group.label || "group", under: `${group.members.length} nodes`,
      }));
      const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
      return [...single, ...several].map((item) => ({
        ...item,
        row: mean(item.members.map((i) => model.row[i])),
        column: mean(item.members.map((i) => model.position[i])),
        kind: item.group === null ? model.kind[item.members[0]] : FEATURE,
      }));
    }

    function cut(text, most) {
      pen.font = "13px system-ui, sans-serif";
      let out = text;
      while (out.length > 2 && pen.measureText(out).width > most) out = `${[...out].slice(0, -2).join("")}…`;
      return { text: out, width: pen.measureText(out).width };
    }

    // Rows of like layers; in a row by position, apart where they would touch; a row that does not fit is two.
    function layout(width) {
      for (const item of items) {
        const label = cut(item.label, BOX.most - 2 * BOX.pad);
        pen.font = "10.5px system-ui, sans-serif";
        const under = item.under ? cut(item.under, BOX.most - 2 * BOX.pad) : { text: "", width: 0 };
        Object.assign(item, { shownLabel: label.text, shownUnder: under.text,
          width: Math.max(58, Math.max(label.width, under.width) + 2 * BOX.pad) });
      }
      const rows = new Map();
      for (const item of items) {
        const row = Math.round(item.row);
        if (!rows.has(row)) rows.set(row, []);
        rows.get(row).push(item);
      }
      const stacked = [];
      for (const row of [...rows.keys()].sort((a, b) => b - a)) {
        const list = rows.get(row).sort((a, b) => a.column - b.column || a.members[0] - b.members[0]);
        let part = [], used = 0;
        for (const item of list) {
          if (part.length && used + item.width + BOX.gapX > width - 2 * EDGE) { stacked.push(part); part = []; used = 0; }
          part.push(item);
          used += item.width + BOX.gapX;
        }
        stacked.push(part);
      }
      const columns = items.map((item) => item.column);
      const [first, last] = [Math.min(...columns), Math.max(...columns)];
      let y = EDGE;
      for (const part of stacked) {
        let x = EDGE;
        const ideal = (item) => EDGE + (last > first ? (item.column - first) / (last - first) : 0.5) * (width - 2 * EDGE - item.width);
        for (const item of part) { item.x = Math.max(x, ideal(item)); x = item.x + item.width + BOX.gapX; }
        // What was pushed over the edge pushes back.
        let right = width - EDGE;
        for (const item of [...part].reverse()) { item.x = Math.min(item.x, right - item.width); right = item.x - BOX.gapX; }
        for (const item of part) item.y = y;
        y += BOX.height + BOX.gapY;
      }
      let height = Math.max(y - BOX.gapY + EDGE, 120);
      for (const item of items) {
        const spot = state.view.spots[item.key];
        if (spot) [item.x, item.y] = [Math.min(Math.max(0, spot[0]), Math.max(0, width - item.width)), Math.max(0, spot[1])];
        height = Math.max(height, item.y + BOX.height + EDGE);
      }
      return height;
    }

    // Of what enters the members of one box, on average, the part that comes from another: signed, links added up.
    function edges() {
      const box = new Map();
      items.forEach((item, k) => item.members.forEach((i) => box.set(i, k)));
      const sums = new Map();
      items.forEach((item, k) => {
        for (const i of item.members)
          for (const l of model.into.of(i)) {
            const from = box.get(model.source[l]);
            if (from === undefined || from === k) continue;
            const key = from * items.length + k;
            sums.set(key, (sums.get(key) ?? 0) + (Math.sign(model.weight[l]) * model.share[l]) / item.members.length);
          }
      });
      return [...sums].map(([key, value]) => ({ from: items[Math.floor(key / items.length)], to: items[key % items.length], value }))
        .sort((a, b) => Math.abs(a.value) - Math.abs(b.value));
    }

    function draw() {
      items = collect();
      for (const key of marked) if (!items.some((item) => item.key === key)) marked.delete(key);
      host.replaceChildren();
      act.counted(items.length, marked.size);
      if (!items.length) return;
      const width = Math.max(320, host.clientWidth);
      const height = layout(width);
      const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Pinned nodes" });
      const links = svg("g", { class: "sg-links", fill: "none" });
      for (const edge of edges()) links.append(link(edge));
      root.append(links);
      places = new Map();
      for (const item of items) {
        const made = box(item);
        places.set(item.key, made);
        root.append(made);
      }
      host.append(root);
    }

    function link({ from, to, value }) {
      const [x1, y1, x2, y2] = [from.x + from.width / 2, from.y, to.x + to.width / 2, to.y + BOX.height];
      // A box drawn below what it flows into, or beside it, is left by its nearer side.
      const down = y1 < y2;
      const [a, b] = down ? [from.y + BOX.height, to.y] : [y1, y2];
      const middle = (a + b) / 2;
      const path = svg("path", {
        d: `M${x1} ${a}C${x1} ${middle} ${x2} ${middle} ${x2} ${b}`, class: value >= 0 ? "plus" : "minus",
        "stroke-width": (0.8 + 9 * Math.min(1, Math.abs(value))).toFixed(2),
        "stroke-opacity": (0.25 + 0.65 * Math.sqrt(Math.min(1, Math.abs(value)))).toFixed(2),
      });
      path.append(svg("title", {}, `${from.label} → ${to.label}: ${value < 0 ? "−" : "+"}${number(100 * Math.abs(value))} % of what enters it`));
      path.dataset.from = from.key;
      path.dataset.to = to.key;
      return path;
    }

    function box(item) {
      const kind = ["feature", "error", "token", "target", "feature"][item.kind];
      const made = svg("g", {
        class: `sg-box ${kind}${item.group === null ? "" : " group"}${marked.has(item.key) ? " marked" : ""}`,
        transform: `translate(${item.x} ${item.y})`, tabindex: 0, role: "button", "aria-pressed": marked.has(item.key),
        "aria-label": `${item.label}, ${item.under || kind}`,
      });
      if (item.group !== null)
        made.append(svg("rect", { x: 4, y: -4, width: item.width, height: BOX.height, rx: 9, class: "behind" }));
      made.append(svg("rect", { width: item.width, height: BOX.height, rx: kind === "token" ? 3 : 9 }));
      const two = item.shownUnder ? 1 : 0;
      made.append(svg("text", { x: item.width / 2, y: two ? 15 : 21.5, "text-anchor": "middle", "font-size": 13 }, item.shownLabel));
      if (two) made.append(svg("text", { x: item.width / 2, y: 27.5, "text-anchor": "middle", "font-size": 10.5, class: "under" }, item.shownUnder));
      made.append(svg("title", {}, [item.label, item.under, ...(item.group === null ? [] : item.members.map(names.title))].filter(Boolean).join("\n")));
      made.dataset.key = item.key;
      return made;
    }

    const itemOf = (event) => {
      const found = event.target.closest?.(".sg-box");
      return found ? items.find((item) => item.key === found.dataset.key) : undefined;
    };

    // --- Pointer and keys -------------------------------------------------------------------------------------------

    host.addEventListener("pointerdown", (event) => {
      const item = itemOf(event);
      if (!item || event.button) return;
      drag = { item, x: event.clientX, y: event.clientY, from: [item.x, item.y], moved: false, shift: event.shiftKey };
      host.setPointerCapture?.(event.pointerId);
    });
    host.addEventListener("pointermove", (event) => {
      if (!drag) return hover(itemOf(event));
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      drag.moved = true;
      [drag.item.x, drag.item.y] = [drag.from[0] + dx, drag.from[1] + dy];
      move(drag.item);
    });
    host.addEventListener("pointerup", () => {
      if (!drag) return;
      const { item, moved, shift } = drag;
      drag = null;
      if (moved) state.edit((view) => { view.spots = { ...view.spots, [item.key]: [Math.round(item.x), Math.round(item.y)] }; });
      else if (shift) mark(item);
      else act.select(item);
    });
    host.addEventListener("pointercancel", () => { drag = null; draw(); });
    host.addEventListener("pointerleave", () => { if (!drag) hover(undefined); });
    host.addEventListener("keydown", (event) => {
      const item = itemOf(event);
      if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === " ") mark(item);
      else if (event.key === "Enter") act.select(item);
      else if (event.key === "F2") act.renameBox(item);
      else return;
      event.preventDefault();
    });
    host.addEventListener("dblclick", (event) => {
      const item = itemOf(event);
      if (item) act.renameBox(item);
    });

    function move(item) {
      places.get(item.key).setAttribute("transform", `translate(${item.x} ${item.y})`);
      const layer = host.querySelector(".sg-links");
      layer.replaceChildren(...edges().map(link));
    }

    function hover(item) {
      host.classList.toggle("hovering", Boolean(item));
      for (const path of host.querySelectorAll("path"))
        path.classList.toggle("near", Boolean(item) && (path.dataset.from === item.key || path.dataset.to === item.key));
      act.mark(item ? item.members : null);
    }

    function mark(item) {
      if (!marked.delete(item.key)) marked.add(item.key);
      draw();
      [...host.querySelectorAll(".sg-box")].find((box) => box.dataset.key === item.key)?.focus();
    }

    return {
      draw,
      marked: () => items.filter((item) => marked.has(item.key)),
      unmark() { marked.clear(); draw(); },
      items: () => items,
      box: (key) => places.get(key),
    };
  }

  return { make };
})();
