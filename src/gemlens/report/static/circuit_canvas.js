// The graph, on two canvases: below, all of it, drawn again only when something changes; above, what belongs to the node
// under the pointer, drawn each frame that it moves.
const CircuitCanvas = (() => {
  const FAINT = 1500; // links drawn while nothing is pointed at; the strongest
  const STROKES = 500; // links of one node with a width of their own

  function make(model, host, names) {
    const base = host.querySelector("#graph-base");
    const top = host.querySelector("#graph-top");
    const probe = document.createElement("i");
    probe.hidden = true;
    host.append(probe);
    let shown, layout, view, colours = {}, asked = 0, focus = { hover: null, found: null, mode: "both" };
    let ratio = 1;

    function colour(name) {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    }

    function theme() {
      for (const name of ["ink", "soft", "line", "sheet", "page", "plus", "minus", "pin", "focus", "mark", "gained", "lost"])
        colours[name] = colour(name);
    }

    function size(canvas) {
      ratio = Math.min(2, devicePixelRatio || 1);
      canvas.width = Math.round(layout.width * ratio);
      canvas.height = Math.round(layout.height * ratio);
      canvas.style.width = `${layout.width}px`;
      canvas.style.height = `${layout.height}px`;
    }

    function context(canvas) {
      const pen = canvas.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, layout.width, layout.height);
      pen.globalAlpha = 1;
      return pen;
    }

    // --- All of it --------------------------------------------------------------------------------------------------

    function draw(nowShown, nowLayout, nowView) {
      [shown, layout, view] = [nowShown, nowLayout, nowView];
      size(base);
      size(top);
      const pen = context(base);
      rows(pen);
      columns(pen);
      faint(pen);
      for (let i = 0; i < model.n; i++) if (shown.node[i]) node(pen, i, fill(i), 1);
      overlay();
    }

    function rows(pen) {
      pen.strokeStyle = colours.line;
      pen.lineWidth = 1;
      for (let row = 0; row < model.rows; row++) {
        const y = Math.round(layout.rowY(row)) + 0.5;
        pen.globalAlpha = row === 0 || row === model.rows - 1 ? 1 : 0.55;
        line(pen, layout.EDGE.left, y, layout.width - layout.EDGE.right + 30, y);
      }
      pen.globalAlpha = 1;
    }

    function columns(pen) {
      const foot = layout.rowY(0);
      pen.font = "12px system-ui, sans-serif";
      model.tokens.forEach((text, p) => {
        const middle = layout.left[p] + layout.widths[p] / 2;
        if (p) {
          pen.globalAlpha = 0.4;
          pen.strokeStyle = colours.line;
          line(pen, layout.left[p], layout.EDGE.top - 12, layout.left[p], foot + 8);
        }
        pen.globalAlpha = 1;
        pen.fillStyle = p === 0 ? colours.soft : colours.ink;
        const fits = pen.measureText(text).width <= layout.widths[p] - 4;
        slanted(pen, text, middle, foot + 20, fits ? 0 : 0.62, fits ? "center" : "left", fits ? Infinity : 62);
      });
      pen.fillStyle = colours.ink;
      for (let i = 0; i < model.n; i++) {
        if (!shown.node[i] || model.kind[i] !== CircuitModel.TARGET) continue;
        const odds = model.raw[i].token_prob;
        const text = names.short(i) + (odds > 0 ? `  ${(100 * odds).toFixed(odds < 0.1 ? 1 : 0)}%` : "");
        slanted(pen, text, layout.x[i] - 1, layout.y[i] - 13, -0.8, "left", 100);
      }
    }

    function slanted(pen, text, x, y, angle, align, most) {
      let cut = text;
      while (cut.length > 2 && pen.measureText(cut).width > most) cut = `${[...cut].slice(0, -2).join("")}…`;
      pen.save();
      pen.translate(x, y);
      pen.rotate(angle);
      pen.textAlign = align;
      pen.fillText(cut, 0, 0);
      pen.restore();
    }

    function faint(pen) {
      let drawn = 0;
      for (const l of model.order) {
        if (!shown.link[l]) continue;
        if (++drawn > FAINT) break;
        pen.globalAlpha = 0.05 + 0.3 * Math.sqrt(Math.max(0, 1 - model.linkRank[l])) * Math.sqrt(model.share[l]);
        pen.strokeStyle = tint(l, model.weight[l] >= 0 ? colours.plus : colours.minus);
        pen.lineWidth = 0.6 + 2.2 * model.share[l];
        curve(pen, l);
      }
      pen.globalAlpha = 1;
    }

    // In a difference, links and nodes have the colour of what became of them.
    function tint(l, otherwise) {
      const what = model.difference?.links[l] ?? 0;
      return what === 1 ? colours.gained : what === 2 ? colours.lost : otherwise;
    }

    function fill(i) {
      const what = model.difference?.nodes[i] ?? 0;
      if (what) return what === 1 ? colours.gained : colours.lost;
      if (view.pinned.includes(i)) return colours.pin;
      return model.kind[i] === CircuitModel.ERROR ? colours.sheet : colours.soft;
    }

    function node(pen, i, inside, alpha) {
      const { FEATURE, ERROR, TOKEN } = CircuitModel;
      const [x, y, r] = [layout.x[i], layout.y[i], layout.r[i]];
      pen.globalAlpha = alpha;
      pen.fillStyle = inside;
      pen.strokeStyle = view.pinned.includes(i) ? colours.ink : model.kind[i] === ERROR ? colours.soft : colours.sheet;
      pen.lineWidth = 1;
      pen.beginPath();
      if (model.kind[i] === FEATURE) pen.arc(x, y, r, 0, 2 * Math.PI);
      else if (model.kind[i] === ERROR) diamond(pen, x, y, r);
      else if (model.kind[i] === TOKEN) pen.rect(x - r, y - r, 2 * r, 2 * r);
      else pen.roundRect(x - r, y - r, 2 * r, 2 * r, r / 2);
      pen.fill();
      pen.stroke();
    }

    function diamond(pen, x, y, r) {
      pen.moveTo(x, y - r * 1.2);
      pen.lineTo(x + r * 1.2, y);
      pen.lineTo(x, y + r * 1.2);
      pen.lineTo(x - r * 1.2, y);
      pen.closePath();
    }

    // --- What is pointed at -----------------------------------------------------------------------------------------

    function overlay() {
      if (!layout) return;
      const pen = context(top);
      const active = focus.hover ?? view.selected;
      if (active !== null && shown.node[active]) {
        pen.globalAlpha = 0.72;
        pen.fillStyle = colours.sheet;
        pen.fillRect(0, layout.EDGE.top - 8, layout.width, layout.rowY(0) - layout.EDGE.top + 15);
        pen.globalAlpha = 1;
        const near = links(pen, active);
        for (const [i, signed] of near) node(pen, i, signed >= 0 ? colours.plus : colours.minus, 1);
        node(pen, active, fill(active) === colours.sheet ? colours.sheet : colours.ink, 1);
        ring(pen, active, colours.focus, 3.5);
      }
      if (view.selected !== null && shown.node[view.selected]) ring(pen, view.selected, colours.focus, 3.5);
      for (const i of view.pinned) {
        if (!shown.node[i]) continue;
        if (i !== active) node(pen, i, colours.pin, 1);
        ring(pen, i, colours.pin, 2);
      }
      for (const i of focus.found ?? []) if (shown.node[i]) ring(pen, i, colours.mark, 3);
      pen.globalAlpha = 1;
    }

    function ring(pen, i, paint, gap) {
      pen.globalAlpha = 1;
      pen.strokeStyle = paint;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(layout.x[i], layout.y[i], layout.r[i] + gap, 0, 2 * Math.PI);
      pen.stroke();
    }

    // Links of one node, widths by share; beyond the strongest ones in two strokes, so that a frame stays a frame.
    function links(pen, i) {
      const near = new Map();
      const rest = { plus: new Path2D(), minus: new Path2D() };
      let strokes = 0;
      const both = [];
      if (focus.mode !== "outputs") both.push(...model.into.of(i));
      if (focus.mode !== "inputs") both.push(...model.out.of(i));
      for (const l of both) {
        if (!shown.link[l]) continue;
        const positive = model.weight[l] >= 0;
        const other = model.source[l] === i ? model.target[l] : model.source[l];
        if (Math.abs(near.get(other) ?? 0) < model.share[l]) near.set(other, positive ? model.share[l] : -model.share[l]);
        if (++strokes > STROKES) {
          trace(rest[positive ? "plus" : "minus"], l);
          continue;
        }
        pen.strokeStyle = positive ? colours.plus : colours.minus;
        pen.globalAlpha = 0.35 + 0.6 * Math.sqrt(model.share[l]);
        pen.lineWidth = 0.7 + 6 * model.share[l];
        curve(pen, l);
      }
      pen.globalAlpha = 0.3;
      pen.lineWidth = 0.6;
      for (const sign of ["plus", "minus"]) { pen.strokeStyle = colours[sign]; pen.stroke(rest[sign]); }
      return near;
    }

    function curve(pen, l) {
      pen.beginPath();
      trace(pen, l);
      pen.stroke();
    }

    function trace(path, l) {
      const [a, b] = [model.source[l], model.target[l]];
      const middle = (layout.y[a] + layout.y[b]) / 2;
      path.moveTo(layout.x[a], layout.y[a] - layout.r[a]);
      path.bezierCurveTo(layout.x[a], middle, layout.x[b], middle, layout.x[b], layout.y[b] + layout.r[b]);
    }

    function line(pen, x1, y1, x2, y2) {
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.lineTo(x2, y2);
      pen.stroke();
    }

    // One drawing a frame, however often the pointer moves.
    function soon() {
      asked ||= requestAnimationFrame(() => { asked = 0; overlay(); });
    }

    return {
      draw, theme, overlay, top,
      point(change) {
        if (Object.entries(change).every(([name, value]) => focus[name] === value)) return;
        focus = { ...focus, ...change };
        soon();
      },
      focus: () => focus,
      soon,
    };
  }

  return { make };
})();
