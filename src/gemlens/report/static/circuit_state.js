// What the reader has chosen: pins, groups, names, thresholds. It can be undone, lives in the address, and goes into the
// file that is saved, under the names that Neuronpedia has for it.
const CircuitState = (() => {
  const KEEP = ["pinned", "groups", "labels", "spots"]; // what undo brings back
  const DEPTH = 200;

  function make(model, file, changed) {
    const params = file.qParams;
    const view = {
      pinned: [], groups: [], labels: {}, spots: {}, nodeThreshold: 1, linkThreshold: 1, errors: true, selected: null,
    };
    const past = [], future = [];
    take({
      pinnedIds: params.pinnedIds, supernodes: params.supernodes, clickedId: params.clickedId, clerps: parse(params.clerps),
      pruningThreshold: params.pruningThreshold, linkThreshold: params.gemlens?.linkThreshold,
      spots: params.gemlens?.spots, errors: params.gemlens?.errors,
    });
    fromAddress();

    const snapshot = () => JSON.stringify(KEEP.map((name) => view[name]));

    // Pins, groups, names and places from the words of a file or an address; what fits no node here is left out.
    function take(said) {
      const ids = (list) => (Array.isArray(list) ? list : []).map((id) => model.byId.get(id)).filter((i) => i !== undefined);
      if (said.pinnedIds) view.pinned = [...new Set(ids(said.pinnedIds))];
      if (Array.isArray(said.supernodes)) {
        const taken = new Set();
        view.groups = said.supernodes.filter(Array.isArray).map(([label, ...members]) => ({
          label: String(label), members: [...new Set(ids(members))].filter((i) => !taken.has(i) && taken.add(i)),
        })).filter((group) => group.members.length);
        for (const group of view.groups) for (const i of group.members) if (!view.pinned.includes(i)) view.pinned.push(i);
      }
      if (Array.isArray(said.clerps))
        for (const pair of said.clerps)
          if (Array.isArray(pair) && model.byId.has(pair[0])) view.labels[model.byId.get(pair[0])] = String(pair[1]);
      if (said.spots && typeof said.spots === "object")
        for (const [key, spot] of Object.entries(said.spots))
          if (Array.isArray(spot) && spot.length === 2 && spot.every(Number.isFinite)) view.spots[key] = spot;
      for (const [name, key] of [["nodeThreshold", "pruningThreshold"], ["linkThreshold", "linkThreshold"]]) {
        const value = said[key] === null || said[key] === "" ? NaN : Number(said[key]);
        if (value >= 0 && value <= 1) view[name] = value;
      }
      if (said.errors !== undefined) view.errors = said.errors !== false && said.errors !== "0";
      if (said.clickedId) view.selected = model.byId.get(said.clickedId) ?? null;
    }

    function parse(text) {
      if (typeof text !== "string") return text;
      try { return JSON.parse(text); } catch { return undefined; }
    }

    function fromAddress() {
      const said = new URLSearchParams(location.hash.slice(1));
      if (!said.size) return;
      take({
        pinnedIds: said.get("pinnedIds")?.split(","), supernodes: parse(said.get("supernodes") ?? undefined),
        clerps: parse(said.get("clerps") ?? undefined), clickedId: said.get("clickedId"),
        pruningThreshold: said.get("pruningThreshold"), linkThreshold: said.get("linkThreshold"),
        spots: parse(said.get("spots") ?? undefined), errors: said.get("errors") ?? undefined,
      });
    }

    let told = 0;
    function toAddress() {
      clearTimeout(told);
      told = setTimeout(() => {
        const said = new URLSearchParams();
        const id = (i) => model.id(i);
        if (view.pinned.length) said.set("pinnedIds", view.pinned.map(id).join(","));
        if (view.groups.length) said.set("supernodes", JSON.stringify(supernodes()));
        if (Object.keys(view.labels).length) said.set("clerps", JSON.stringify(clerps()));
        if (Object.keys(view.spots).length) said.set("spots", JSON.stringify(view.spots));
        if (view.selected !== null) said.set("clickedId", id(view.selected));
        if (view.nodeThreshold < 1) said.set("pruningThreshold", view.nodeThreshold);
        if (view.linkThreshold < 1) said.set("linkThreshold", view.linkThreshold);
        if (!view.errors) said.set("errors", "0");
        try { history.replaceState(null, "", `#${said}`); } catch { /* kept in the page */ }
      }, 150);
    }

    const supernodes = () => view.groups.map((group) => [group.label, ...group.members.map(model.id)]);
    const clerps = () => Object.entries(view.labels).map(([i, label]) => [model.id(Number(i)), label]);

    // Look elsewhere: nothing to undo.
    function look(change) {
      Object.assign(view, change);
      toAddress();
      changed(Object.keys(change));
    }

    // Change what is kept, by a function of the view.
    function edit(change) {
      const before = snapshot();
      change(view);
      tidy();
      if (snapshot() === before) return;
      past.push(before);
      if (past.length > DEPTH) past.shift();
      future.length = 0;
      toAddress();
      changed(KEEP);
    }

    // Members are pinned, groups of one are none, a node is in one group.
    function tidy() {
      const pins = new Set(view.pinned);
      for (const group of view.groups) group.members = group.members.filter((i) => pins.has(i));
      view.groups = view.groups.filter((group) => group.members.length > 1);
    }

    function step(from, to) {
      if (!from.length) return false;
      to.push(snapshot());
      JSON.parse(from.pop()).forEach((value, k) => { view[KEEP[k]] = value; });
      toAddress();
      changed(KEEP);
      return true;
    }

    // The view as the file keeps it.
    function params_() {
      const said = { ...file.qParams };
      said.pinnedIds = view.pinned.map(model.id);
      said.supernodes = supernodes();
      said.clickedId = view.selected === null ? "" : model.id(view.selected);
      if (view.nodeThreshold < 1) said.pruningThreshold = view.nodeThreshold; else delete said.pruningThreshold;
      const own = {};
      if (view.linkThreshold < 1) own.linkThreshold = view.linkThreshold;
      if (!view.errors) own.errors = false;
      if (Object.keys(view.spots).length) own.spots = view.spots;
      if (Object.keys(own).length) said.gemlens = own; else delete said.gemlens;
      return said;
    }

    return {
      view, look, edit,
      undo: () => step(past, future),
      redo: () => step(future, past),
      canUndo: () => past.length > 0,
      canRedo: () => future.length > 0,
      params: params_,
      groupOf: (i) => view.groups.findIndex((group) => group.members.includes(i)),
      isPinned: (i) => view.pinned.includes(i),
      pin(list, on) {
        edit((now) => {
          const wanted = new Set(list);
          now.pinned = now.pinned.filter((i) => !wanted.has(i));
          if (on) now.pinned.push(...wanted);
        });
      },
    };
  }

  return { make };
})();
