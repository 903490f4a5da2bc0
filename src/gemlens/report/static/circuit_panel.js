// The panel of one node: what it is, what is known of it, what enters it and what it flows into.
const CircuitPanel = (() => {
  const ROWS = 14;
  const { FEATURE, ERROR, TOKEN, TARGET } = CircuitModel;

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (tag === "button") made.type = "button";
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function number(value) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    if (size >= 1) return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
    return String(Number(value.toPrecision(3)));
  }

  // What nodes are called: by the reader, the file, what is known of the feature, or their place.
  function namer(model, labels) {
    const place = (i) => `${model.layer(i)}/${model.feature(i) ?? "?"}`;
    function told(i) {
      const known = model.known(i);
      return labels()[i] ?? (model.label(i) || known?.label || "");
    }
    function hint(i) {
      const tokens = model.known(i)?.top ?? [];
      return tokens.length ? `→ ${tokens.slice(0, 3).map(([text]) => text).join(" ")}` : "";
    }
    function short(i) {
      if (labels()[i]) return labels()[i];
      if (model.kind[i] === TOKEN || model.kind[i] === TARGET) return model.label(i) || model.id(i);
      if (model.kind[i] === ERROR) return told(i) || `error, layer ${model.layer(i)}`;
      return told(i) || place(i);
    }
    return {
      short,
      place,
      title: (i) => short(i) + (short(i) === place(i) && hint(i) ? ` ${hint(i)}` : ""),
      hint,
      kind: (i) => ["feature", "error", "token", "target", model.raw[i].feature_type][model.kind[i]],
    };
  }

  function make(model, state, names, host, act) {
    const more = { in: false, out: false };
    let shown = null;

    function draw(i, visible) {
      shown = visible;
      if (i === null) return host.replaceChildren(...empty());
      host.replaceChildren(head(i), facts(i), ...known(i), list(i, "in"), list(i, "out"));
    }

    function empty() {
      const box = element("div", "nothing");
      box.append(
        element("p", "", "Point at a node to see what enters it and what it flows into. Click to keep it here."),
        element("p", "hint", "Each column is a token, each row a layer: inputs below, the next token on top."),
      );
      const key = element("ul", "legend");
      for (const [name, text] of [
        ["dot feature", "feature"], ["dot error", "error: what the features miss"], ["dot token", "token"],
        ["dot target", "target"], ["bar plus", "raises"], ["bar minus", "lowers"],
      ]) {
        const item = element("li");
        item.append(element("i", name), element("span", "", text));
        key.append(item);
      }
      box.append(key);
      return [box];
    }

    function head(i) {
      const box = element("div", "node-head");
      const title = element("div", "node-title");
      const heading = element("h2", "", names.short(i));
      heading.dir = "auto";
      const pin = element("button", "quiet pin", state.isPinned(i) ? "Unpin" : "Pin");
      pin.setAttribute("aria-pressed", state.isPinned(i));
      pin.addEventListener("click", () => act.pin(i));
      const rename = element("button", "quiet", "Rename");
      rename.addEventListener("click", () => edit(i, heading));
      title.append(heading, rename, pin);
      box.append(title);
      const where = [names.kind(i)];
      if (model.kind[i] === FEATURE) where.push(`layer ${model.layer(i)}`, `#${model.feature(i) ?? "?"}`);
      else if (model.kind[i] === ERROR) where.push(`layer ${model.layer(i)}`);
      const line = element("p", "meta", `${where.join(" · ")} · at `);
      line.append(element("b", "", model.token(i)), ` (${model.position[i]})`);
      const page = model.page(i);
      if (page) {
        const link = element("a", "", "Neuronpedia ↗");
        link.href = page;
        link.target = "_blank";
        link.rel = "noopener noreferrer";
        line.append(" · ", link);
      }
      box.append(line);
      return box;
    }

    // A label is changed in its place: Enter keeps it, Escape does not.
    function edit(i, heading) {
      const field = element("input", "rename");
      field.value = state.view.labels[i] ?? names.short(i);
      field.maxLength = 200;
      field.setAttribute("aria-label", "Name of this node");
      heading.replaceWith(field);
      field.focus();
      field.select();
      let done = false;
      const end = (keep) => {
        if (done) return;
        done = true;
        if (keep) act.rename(i, field.value.trim());
        else act.redraw();
        host.querySelector(".node-title .quiet")?.focus();
      };
      field.addEventListener("keydown", (event) => {
        event.stopPropagation();
        if (event.key === "Enter" || event.key === "Escape") event.preventDefault(); // or Enter would press what gets the focus
        if (event.key === "Enter") end(true);
        else if (event.key === "Escape") end(false);
      });
      field.addEventListener("blur", () => end(true));
    }

    function facts(i) {
      const box = element("dl", "facts small");
      const raw = model.raw[i];
      const add = (name, value, title) => {
        if (value === null || value === undefined) return;
        const item = element("div");
        if (title) item.title = title;
        item.append(element("dt", "", name), element("dd", "", value));
        box.append(item);
      };
      if (model.kind[i] === FEATURE) add("Activation", number(raw.activation));
      if (model.kind[i] === TARGET) {
        if (raw.token_prob > 0) add("Probability", number(raw.token_prob));
        if (typeof raw.value === "number") add("Value", number(raw.value), "A logit minus the mean of all, or what the target measures");
      } else if (raw.influence !== null && raw.influence !== undefined)
        add("Influence", `top ${(100 * raw.influence).toFixed(raw.influence < 0.1 ? 1 : 0)} %`,
          "Share of all influence that this node and the more influential ones hold together");
      if (model.into.of(i).length) add("Inputs shown", `${Math.round(100 * model.shown(i))} %`, "Of all that enters it, by size");
      if (typeof raw.bias === "number" && raw.bias) add("Bias", number(raw.bias), "What comes from constants");
      const change = model.difference?.values[i];
      if (change) add(...change);
      return box;
    }

    function known(i) {
      const found = model.known(i);
      if (!found) return [];
      const box = element("div", "evidence");
      if (found.label && found.label !== names.short(i)) box.append(element("p", "label", found.label));
      for (const [name, key, list] of [["Raises", "plus", found.top], ["Lowers", "minus", found.bottom]]) {
        if (!list.length) continue;
        const row = element("p", `tokens ${key}`);
        row.append(element("span", "what", name));
        for (const [text, value] of list.slice(0, 10)) {
          const chip = element("span", "chip", text);
          chip.title = number(value);
          chip.dir = "auto";
          row.append(chip);
        }
        box.append(row);
      }
      const tops = found.examples.flatMap(([, values]) => values).reduce((a, b) => Math.max(a, b ?? 0), 0);
      for (const [texts, values] of found.examples.slice(0, 6)) {
        const row = element("p", "example");
        row.dir = "auto";
        texts.forEach((text, k) => {
          const word = element("span", "", text.replaceAll("·", " "));
          if (values[k] > 0) {
            word.className = "hot";
            word.style.setProperty("--share", (10 + 90 * Math.min(1, values[k] / tops)).toFixed(0));
            word.title = number(values[k]);
          }
          row.append(word);
        });
        box.append(row);
      }
      return box.childElementCount ? [box] : [];
    }

    function list(i, way) {
      const links = [...(way === "in" ? model.into : model.out).of(i)];
      const box = element("section", "links");
      const title = way === "in" ? "Inputs" : "Outputs";
      const here = links.filter((l) => shown.link[l]);
      const head = element("div", "links-head");
      head.append(element("h3", "", title), element("span", "hint", count(here.length, links.length)));
      box.append(head);
      if (!links.length) return box;
      const rows = element("ol", "link-list");
      const listed = more[way] ? links : links.slice(0, ROWS);
      const most = listed.reduce((a, l) => Math.max(a, model.share[l]), 1e-9);
      for (const l of listed) rows.append(row(l, way, most));
      box.append(rows);
      if (links.length > ROWS) {
        const button = element("button", "quiet", more[way] ? "Show fewer" : `Show all ${links.length.toLocaleString("en-US")}`);
        button.addEventListener("click", () => { more[way] = !more[way]; act.redraw(); });
        box.append(button);
      }
      return box;
    }

    const count = (some, all) => (some === all ? `${all}` : `${some} of ${all} drawn`);

    function row(l, way, most) {
      const other = way === "in" ? model.source[l] : model.target[l];
      const item = element("li");
      const button = element("button", `link ${model.weight[l] >= 0 ? "plus" : "minus"}`);
      button.dataset.node = other;
      const bar = element("span", "bar");
      const inner = element("i");
      inner.style.setProperty("--share", ((100 * model.share[l]) / most).toFixed(1));
      bar.append(inner);
      const name = element("span", "name", names.title(other));
      name.dir = "auto";
      const where = model.kind[other] === FEATURE ? `${names.place(other)} ` : "";
      button.append(
        bar,
        element("span", "value", `${model.weight[l] < 0 ? "−" : "+"}${number(Math.abs(model.weight[l]))}`),
        name,
        element("span", "where", `${names.short(other) === names.place(other) ? "" : where}${model.token(other)}`),
      );
      const percent = `${(100 * model.share[l]).toFixed(1)} % of what enters ${way === "in" ? "this node" : "that node"}`;
      button.title = percent;
      item.append(button);
      return item;
    }

    host.addEventListener("click", (event) => {
      const target = event.target.closest("[data-node]");
      if (target) act.go(Number(target.dataset.node));
    });
    host.addEventListener("pointerover", (event) => {
      const target = event.target.closest("[data-node]");
      act.mark(target ? [Number(target.dataset.node)] : null);
    });
    host.addEventListener("pointerleave", () => act.mark(null));

    return { draw };
  }

  return { make, namer, element, number };
})();
