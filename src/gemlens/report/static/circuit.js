// The page of a circuit: what the files before this one make, put together, and what keys and buttons do. Everything from
// the data enters the document as textContent, so no string of it is ever parsed as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { element, number } = CircuitPanel;
  const { FEATURE, ERROR, TARGET } = CircuitModel;
  const model = CircuitModel.build(data);
  const state = CircuitState.make(model, data.file, changed);
  const { view } = state;
  const names = CircuitPanel.namer(model, () => view.labels);
  const canvas = CircuitCanvas.make(model, $("graph"), names);
  const panel = CircuitPanel.make(model, state, names, $("node"), {
    pin: (i) => togglePin([i]), rename, go: select, redraw: () => drawPanel(), mark,
  });
  const sub = CircuitSubgraph.make(model, state, names, $("subgraph"), {
    mark, counted, renameBox, select: (item) => select(item.members[0]),
  });
  let shown, layout, reach = null; // reach: where the arrow keys are

  const say = (text) => { $("live").textContent = text; };
  const count = (n, noun) => `${n.toLocaleString("en-US")} ${noun}${n === 1 ? "" : "s"}`;

  // --- Drawing ------------------------------------------------------------------------------------------------------

  function changed(what) {
    if (!shown) return;
    const all = what.some((name) => ["nodeThreshold", "linkThreshold", "errors", "pinned"].includes(name)) || hidden();
    if (all) drawGraph();
    else if (what.includes("labels")) canvas.draw(shown, layout, view);
    else canvas.soon();
    drawPanel();
    if (what.some((name) => ["pinned", "groups", "labels", "spots"].includes(name))) sub.draw();
    buttons();
  }

  // A chosen node below the threshold is brought up, and goes again with the choice.
  const hidden = () => (view.selected !== null && !shown.node[view.selected]);

  function drawGraph() {
    shown = CircuitModel.visible(model, view);
    layout = CircuitLayout.place(model, shown, $("scroller").clientWidth);
    $("graph").style.height = `${layout.height}px`;
    canvas.draw(shown, layout, view);
    rows();
    $("nodes-shown").textContent = `${shown.nodes.toLocaleString("en-US")} of ${model.n.toLocaleString("en-US")}`;
    $("links-shown").textContent = `${shown.links.toLocaleString("en-US")} of ${model.m.toLocaleString("en-US")}`;
    for (const [name, id] of [["nodeThreshold", "node"], ["linkThreshold", "link"]]) {
      $(`${id}-threshold`).value = view[name];
      $(`${id}-value`).textContent = `${Math.round(100 * view[name])} %`;
    }
    $("errors").checked = view.errors;
  }

  function rows() {
    const every = Math.ceil(13 / layout.rowHeight);
    const made = [];
    for (let row = 0; row < model.rows; row++) {
      const end = row === 0 ? "token" : row === model.rows - 1 ? "logit" : "";
      if (!end && (row - 1) % every) continue;
      const label = element("span", "", end || `L${row - 1}`);
      label.style.top = `${layout.rowY(row)}px`;
      made.push(label);
    }
    $("rows").replaceChildren(...made);
  }

  function drawPanel() {
    panel.draw(view.selected ?? canvas.focus().hover ?? reach, shown);
  }

  function mark(list) {
    canvas.point({ found: list ?? (matches.length ? matches : null) });
  }

  // --- Choosing -----------------------------------------------------------------------------------------------------

  function select(i) {
    reach = i ?? reach;
    state.look({ selected: i });
    if (i === null) return say("Nothing chosen");
    const into = model.into.of(i).length, out = model.out.of(i).length;
    say(`${names.title(i)}, ${names.kind(i)}, ${model.layer(i) >= 0 ? `layer ${model.layer(i)}, ` : ""}at ${model.token(i)}. `
      + `${count(into, "input")}, ${count(out, "output")}.`);
    // Into sight, where the graph is wider than the window.
    const box = $("scroller");
    if (layout.x[i] < box.scrollLeft + 40 || layout.x[i] > box.scrollLeft + box.clientWidth - 60)
      box.scrollLeft = layout.x[i] - box.clientWidth / 2;
  }

  function togglePin(list) {
    const on = !list.every(state.isPinned);
    state.pin(list, on);
    say(`${on ? "Pinned" : "Unpinned"} ${list.length === 1 ? names.title(list[0]) : count(list.length, "node")}`);
  }

  function rename(i, name) {
    state.edit((now) => {
      now.labels = { ...now.labels };
      if (name && name !== model.label(i)) now.labels[i] = name;
      else delete now.labels[i];
    });
    drawPanel();
  }

  // --- The graph under pointer and keys -----------------------------------------------------------------------------

  const graph = $("graph");
  const place = (event) => {
    const box = canvas.top.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let waiting = 0;
  graph.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const [x, y] = place(event);
    const i = layout.grid(x, y);
    if (i === canvas.focus().hover) return;
    graph.classList.toggle("over", i !== null);
    canvas.point({ hover: i });
    tip(i);
    if (view.selected !== null) return;
    // The panel is made once the pointer rests: building lists in every frame would cost frames.
    clearTimeout(waiting);
    waiting = setTimeout(drawPanel, 60);
  });
  graph.addEventListener("pointerleave", () => {
    canvas.point({ hover: null });
    tip(null);
    graph.classList.remove("over");
    clearTimeout(waiting);
    if (view.selected === null) waiting = setTimeout(drawPanel, 60);
  });
  graph.addEventListener("click", (event) => {
    const [x, y] = place(event);
    const i = layout.grid(x, y, event.detail && event.pointerType === "touch" ? 22 : 14);
    if (i !== null && (event.shiftKey || event.ctrlKey || event.metaKey)) return togglePin([i]);
    select(i === view.selected ? null : i);
  });

  function tip(i) {
    const box = $("tip");
    box.hidden = i === null;
    if (i === null) return;
    const raw = model.raw[i];
    const where = [names.kind(i)];
    if (model.kind[i] === FEATURE) where.push(names.place(i));
    if (typeof raw.activation === "number") where.push(number(raw.activation));
    const name = element("span", "", names.title(i));
    name.dir = "auto";
    box.replaceChildren(name, element("small", "", `${where.join(" · ")} · at ${model.token(i)}`));
    const stage = $("scroller");
    const x = layout.x[i] - stage.scrollLeft;
    const left = Math.max(6, Math.min(x + 14, stage.clientWidth - box.offsetWidth - 8));
    const above = layout.y[i] - box.offsetHeight - 12;
    box.style.left = `${left}px`;
    box.style.top = `${above > 4 ? above : layout.y[i] + 14}px`;
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  graph.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = view.selected ?? reach;
    if (Object.hasOwn(steps, event.key)) {
      event.preventDefault();
      const first = [...model.kind.keys()].find((i) => model.kind[i] === TARGET) ?? 0;
      const next = at === null || !shown.node[at] ? first : CircuitLayout.neighbour(model, shown, layout, at, ...steps[event.key]);
      if (next !== null) select(next);
    } else if (event.key === "Enter" && at !== null) {
      select(view.selected === null ? at : null);
    }
  });

  const keys = {
    "/": () => $("search").focus(),
    p: () => { const at = view.selected ?? canvas.focus().hover; if (at !== null) togglePin([at]); },
    r: () => { if (view.selected !== null) $("node").querySelector(".node-title .quiet").click(); },
    g: () => $("group").click(),
    "[": () => state.look({ nodeThreshold: Math.max(0, +(view.nodeThreshold - 0.05).toFixed(3)) }),
    "]": () => state.look({ nodeThreshold: Math.min(1, +(view.nodeThreshold + 0.05).toFixed(3)) }),
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.closest?.("input:not([type=range]):not([type=checkbox])")) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
      event.preventDefault();
      return event.shiftKey ? redo() : undo();
    }
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "y") { event.preventDefault(); return redo(); }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (sub.marked().length) sub.unmark();
      else if (view.selected !== null) select(null);
    } else if (Object.hasOwn(keys, event.key)) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  // --- Search -------------------------------------------------------------------------------------------------------

  let matches = [], chosen = -1;
  const words = Array.from({ length: model.n }, (_, i) => {
    const known = model.known(i);
    return [model.id(i), model.label(i), names.place(i), `#${model.feature(i)}`, model.token(i), known?.label ?? "",
      ...(known?.top ?? []).slice(0, 10).map(([text]) => text), names.kind(i)].join("\n").toLowerCase();
  });

  function look(text) {
    const asked = text.toLowerCase().split(/\s+/).filter(Boolean);
    const all = asked.length ? [...words.keys()].filter((i) =>
      asked.every((word) => words[i].includes(word) || (view.labels[i] ?? "").toLowerCase().includes(word))) : [];
    matches = all.sort((a, b) => model.rank[a] - model.rank[b]);
    chosen = -1;
    const box = $("found");
    box.hidden = !asked.length;
    $("search").setAttribute("aria-expanded", String(!box.hidden));
    if (matches.length) {
      box.replaceChildren(...matches.slice(0, 60).map((i) => {
        const row = element("button");
        row.setAttribute("role", "option");
        row.dataset.node = i;
        const name = element("span", "name", names.title(i));
        name.dir = "auto";
        row.append(name, element("span", "where", `${model.kind[i] === FEATURE ? `${names.place(i)} ` : ""}${model.token(i)}`));
        return row;
      }));
      const pin = element("button", "quiet", matches.length === 1 ? "Pin it" : `Pin all ${matches.length}`);
      pin.id = "pin-found";
      if (matches.length <= 200) box.append(pin);
    } else box.replaceChildren(element("p", "", "No node has these words"));
    canvas.point({ found: matches.length ? matches : null });
    if (asked.length) say(count(matches.length, "node"));
  }

  function closeSearch() {
    $("search").value = "";
    look("");
  }

  $("search").addEventListener("input", (event) => look(event.target.value));
  $("search").addEventListener("keydown", (event) => {
    const options = [...$("found").querySelectorAll("[role=option]")];
    if (event.key === "Escape") { closeSearch(); graph.focus(); }
    else if (event.key === "Enter") {
      const i = matches[Math.max(0, chosen)];
      if (i === undefined) return;
      closeSearch();
      select(i);
      graph.focus({ preventScroll: true });
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      chosen = Math.max(-1, Math.min(options.length - 1, chosen + (event.key === "ArrowDown" ? 1 : -1)));
      options.forEach((option, k) => option.setAttribute("aria-selected", String(k === chosen)));
      options[chosen]?.scrollIntoView({ block: "nearest" });
      if (chosen >= 0) canvas.point({ found: [matches[chosen]] });
    }
  });
  $("found").addEventListener("click", (event) => {
    const row = event.target.closest("button");
    if (!row) return;
    if (row.id === "pin-found") togglePin([...matches]);
    else select(Number(row.dataset.node));
    closeSearch();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!$("found").hidden && !event.target.closest(".search")) closeSearch();
  });

  // --- Thresholds and modes -----------------------------------------------------------------------------------------

  for (const [id, name] of [["node-threshold", "nodeThreshold"], ["link-threshold", "linkThreshold"]])
    $(id).addEventListener("input", (event) => state.look({ [name]: Number(event.target.value) }));
  $("errors").addEventListener("change", (event) => state.look({ errors: event.target.checked }));
  const modes = [...document.querySelectorAll("[data-mode]")];
  for (const button of modes)
    button.addEventListener("click", () => {
      modes.forEach((each) => each.setAttribute("aria-checked", String(each === button)));
      canvas.point({ mode: button.dataset.mode });
    });

  // --- The pinned part ----------------------------------------------------------------------------------------------

  function counted(boxes) {
    $("pin-count").textContent = view.pinned.length ? `${count(view.pinned.length, "node")} in ${count(boxes, "box").replace("boxs", "boxes")}` : "";
    $("sub-empty").hidden = view.pinned.length > 0;
  }

  function buttons() {
    const marked = sub.marked();
    $("group").disabled = marked.length < 2;
    $("ungroup").disabled = !marked.some((item) => item.group !== null);
    $("rename").disabled = marked.length !== 1;
    $("undo").disabled = !state.canUndo();
    $("redo").disabled = !state.canRedo();
    for (const id of ["save-svg", "save-png", "tidy", "unpin-all"]) $(id).disabled = !view.pinned.length;
    $("pin-paths").hidden = !data.paths.length;
    $("suggest").hidden = !data.groups.length;
    $("suggest").disabled = !view.pinned.length;
  }

  function undo() { if (state.undo()) say("Undone"); }
  function redo() { if (state.redo()) say("Done again"); }
  $("undo").addEventListener("click", undo);
  $("redo").addEventListener("click", redo);
  $("subgraph").addEventListener("pointerup", () => setTimeout(buttons));
  $("subgraph").addEventListener("keyup", () => setTimeout(buttons));

  $("group").addEventListener("click", () => {
    const marked = sub.marked();
    if (marked.length < 2) return;
    const members = marked.flatMap((item) => item.members);
    const first = marked.find((item) => item.group !== null) ?? marked[0];
    const label = first.label;
    state.edit((now) => {
      now.groups = now.groups.filter((_, g) => !marked.some((item) => item.group === g));
      now.groups.push({ label, members });
    });
    sub.unmark();
    const made = sub.items().find((item) => item.group === view.groups.length - 1);
    if (made) renameBox(made);
  });
  $("ungroup").addEventListener("click", () => {
    const gone = sub.marked().map((item) => item.group).filter((g) => g !== null);
    state.edit((now) => { now.groups = now.groups.filter((_, g) => !gone.includes(g)); });
    sub.unmark();
    buttons();
  });
  $("rename").addEventListener("click", () => { const [item] = sub.marked(); if (item) renameBox(item); });

  function renameBox(item) {
    const box = $("rename-box");
    const field = element("input", "rename");
    field.value = item.group === null ? names.short(item.members[0]) : item.label;
    field.maxLength = 200;
    field.setAttribute("aria-label", item.group === null ? "Name of this node" : "Name of this group");
    box.replaceChildren(field);
    box.hidden = false;
    field.focus();
    field.select();
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      box.hidden = true;
      const name = field.value.trim();
      if (!keep) return;
      if (item.group === null) rename(item.members[0], name);
      else if (name)
        state.edit((now) => { now.groups = now.groups.map((group, g) => (g === item.group ? { ...group, label: name } : group)); });
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" || event.key === "Escape") event.preventDefault(); // or Enter would press what gets the focus
      if (event.key === "Enter") end(true);
      else if (event.key === "Escape") end(false);
    });
    field.addEventListener("blur", () => end(true));
  }

  $("pin-paths").addEventListener("click", () => {
    const list = [...new Set(data.paths.flatMap((path) => path.nodes))].filter((i) => model.kind[i] !== ERROR);
    state.pin(list, true);
    say(`Pinned ${count(list.length, "node")} of the strongest paths`);
  });
  $("tidy").addEventListener("click", () => state.edit((now) => { now.spots = {}; }));
  $("unpin-all").addEventListener("click", () => state.edit((now) => { now.pinned = []; now.groups = []; now.spots = {}; }));

  // Suggestions, as far as they are about pinned nodes that are in no group yet; each with its reason.
  $("suggest").addEventListener("click", () => {
    const free = new Set(view.pinned.filter((i) => state.groupOf(i) < 0));
    const made = [];
    state.edit((now) => {
      for (const group of data.groups) {
        const members = group.nodes.filter((i) => free.has(i));
        if (members.length < 2) continue;
        members.forEach((i) => free.delete(i));
        now.groups = [...now.groups, { label: group.label, members }];
        made.push({ ...group, members });
      }
    });
    const list = $("reasons");
    list.hidden = false;
    list.replaceChildren(...(made.length ? made.map((group) => {
      const item = element("li");
      item.append(element("b", "", group.label), element("span", "", `${count(group.members.length, "node")}: ${group.reason}`));
      return item;
    }) : [element("li", "", "No two pinned nodes are alike enough to suggest a group.")]));
    say(`${count(made.length, "group")} suggested`);
  });

  const name = (kind) => `${String(data.file.metadata.slug ?? "circuit").replace(/[^\w-]+/g, "-").slice(0, 60) || "circuit"}.${kind}`;
  $("save-json").addEventListener("click", () =>
    CircuitSave.hand(new Blob([CircuitSave.json(data, model, state)], { type: "application/json" }), name("json")));
  $("save-svg").addEventListener("click", () =>
    CircuitSave.hand(new Blob([CircuitSave.picture($("subgraph").firstChild)], { type: "image/svg+xml" }), name("svg")));
  $("save-png").addEventListener("click", () =>
    CircuitSave.png($("subgraph").firstChild, (blob) => CircuitSave.hand(blob, name("png"))));

  // --- Differences --------------------------------------------------------------------------------------------------

  function changes() {
    if (!data.difference) return;
    const lists = [["Gained", "gained", data.difference.gained], ["Lost", "lost", data.difference.lost],
      ["Changed", "changed", data.difference.changed]];
    $("changes").replaceChildren(...lists.map(([title, key, list]) => {
      const box = element("div", key);
      const head = element("h3");
      head.append(element("i"), `${title} `, element("span", "hint", String(list.length)));
      const rows = element("ol", "link-list");
      for (const [i, said] of list.slice(0, 12)) {
        const item = element("li");
        const button = element("button", "link");
        button.dataset.node = i;
        const label = element("span", "name", names.title(i));
        label.dir = "auto";
        button.append(label, element("span", "where", said));
        item.append(button);
        rows.append(item);
      }
      box.append(head, rows);
      return box;
    }));
    $("changes").addEventListener("click", (event) => {
      const target = event.target.closest("[data-node]");
      if (target) { select(Number(target.dataset.node)); graph.scrollIntoView({ block: "nearest" }); }
    });
  }

  // --- Beginning ----------------------------------------------------------------------------------------------------

  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs($("scroller").clientWidth - width) < 2) return;
    width = $("scroller").clientWidth;
    drawGraph();
    sub.draw();
  }).observe($("scroller"));
  const retheme = () => { canvas.theme(); canvas.draw(shown, layout, view); };
  new MutationObserver(retheme).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", retheme);
  canvas.theme();
  width = $("scroller").clientWidth;
  drawGraph();
  drawPanel();
  sub.draw();
  buttons();
  changes();
})();
