// Where nodes are drawn: layers from the bottom up, a column for each token as wide as its fullest cell needs.
const CircuitLayout = (() => {
  const EDGE = { top: 84, bottom: 66, left: 14, right: 46 };
  const ROW = { least: 20, most: 44 };
  const SPACE = { least: 7, most: 18, target: 34, name: 22 };
  const COLUMN = 30;

  function place(model, shown, width) {
    const { TARGET } = CircuitModel;
    const columns = model.tokens.length;
    const cells = new Map();
    const need = new Float64Array(columns).fill(1);
    const floor = new Float64Array(columns).fill(COLUMN);
    for (let i = 0; i < model.n; i++) {
      if (!shown.node[i]) continue;
      const key = model.position[i] * 4096 + model.row[i];
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(i);
    }
    for (const cell of cells.values()) {
      const at = model.position[cell[0]];
      if (at >= columns) continue;
      const ends = model.kind[cell[0]] === TARGET;
      need[at] = Math.max(need[at], cell.length * (ends ? 2 : 1));
      floor[at] = Math.max(floor[at], cell.length * (ends ? SPACE.name : SPACE.least));
    }
    const inner = width - EDGE.left - EDGE.right;
    const sum = need.reduce((a, b) => a + b, 0);
    // Wider than the window only where nodes or token names would lie on one another.
    const spare = Math.max(0, inner - floor.reduce((a, b) => a + b, 0));
    const widths = Array.from(floor, (value, p) => value + (spare * need[p]) / sum);
    const full = widths.reduce((a, b) => a + b, 0);
    const rowHeight = Math.max(ROW.least, Math.min(ROW.most, 640 / model.rows));
    const height = EDGE.top + EDGE.bottom + rowHeight * (model.rows - 1);
    const left = [];
    let x = EDGE.left;
    for (const each of widths) { left.push(x); x += each; }

    const at = { x: new Float64Array(model.n), y: new Float64Array(model.n), r: new Float64Array(model.n) };
    const rowY = (row) => height - EDGE.bottom - row * rowHeight;
    for (const cell of cells.values()) {
      const column = Math.min(model.position[cell[0]], columns - 1);
      cell.sort((a, b) => model.rank[a] - model.rank[b] || a - b);
      const most = model.kind[cell[0]] === TARGET ? SPACE.target : SPACE.most;
      const space = Math.min(most, widths[column] / cell.length);
      cell.forEach((i, k) => {
        at.x[i] = left[column] + widths[column] / 2 + (k - (cell.length - 1) / 2) * space;
        at.y[i] = rowY(model.row[i]);
        at.r[i] = Math.max(2.2, Math.min(5.2, space * 0.4)) * (model.kind[i] === TARGET ? 1.25 : 1);
      });
    }
    return { ...at, width: Math.max(width, full + EDGE.left + EDGE.right), height, left, widths, rowY, rowHeight, EDGE,
      grid: grid(model, shown, at) };
  }

  // Nodes by square of the plane, so that what lies under the pointer is found among a few.
  const SQUARE = 24;
  function grid(model, shown, at) {
    const squares = new Map();
    const key = (x, y) => Math.floor(x / SQUARE) * 65536 + Math.floor(y / SQUARE);
    for (let i = 0; i < model.n; i++) {
      if (!shown.node[i]) continue;
      const k = key(at.x[i], at.y[i]);
      if (!squares.has(k)) squares.set(k, []);
      squares.get(k).push(i);
    }
    return (x, y, reach = 14) => {
      let best = null, nearest = reach * reach;
      for (let dx = -1; dx <= 1; dx++)
        for (let dy = -1; dy <= 1; dy++)
          for (const i of squares.get(key(x + dx * SQUARE, y + dy * SQUARE)) ?? []) {
            const d = (at.x[i] - x) ** 2 + (at.y[i] - y) ** 2;
            if (d < nearest) { nearest = d; best = i; }
          }
      return best;
    };
  }

  // The next node from one in a direction, for the keyboard.
  function neighbour(model, shown, layout, from, dx, dy) {
    let best = null, least = Infinity;
    for (let i = 0; i < model.n; i++) {
      if (!shown.node[i] || i === from) continue;
      const x = layout.x[i] - layout.x[from], y = layout.y[from] - layout.y[i];
      if (dx && (Math.abs(y) > 1 || x * dx <= 0)) continue;
      if (dy && y * dy <= 1) continue;
      const d = dx ? Math.abs(x) : Math.abs(y) * 4 + Math.abs(x);
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  return { place, neighbour };
})();
