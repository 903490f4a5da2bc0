// The page is complete without this file; here the tokens get their shades, the lists their features, the keys their
// meaning. Everything from the data enters the document as textContent, so no string of it is ever parsed as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const { tokens, dictionaries } = JSON.parse($("data").textContent);
  const cells = [...document.querySelectorAll(".token")];
  const place = new Map(cells.map((cell, i) => [cell, i]));
  const readable = tokens.filter((token) => token.read).length;
  const root = document.documentElement;

  // What the reader has chosen. `near` is the token last pointed at or focused; it is shown while none is pinned.
  const view = { dictionary: 0, feature: null, pinned: null, near: null };
  let values = []; // the shading in words: one activation a token
  const dictionary = () => dictionaries[view.dictionary];

  // --- Small things -------------------------------------------------------------------------------------------------

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (tag === "button") node.type = "button";
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function number(value) {
    if (value === null || value === undefined) return "not finite";
    if (value >= 100) return Math.round(value).toLocaleString("en-US");
    if (value >= 1) return value.toFixed(value >= 10 ? 1 : 2);
    return String(Number(value.toPrecision(3)));
  }

  const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

  // --- Shading ------------------------------------------------------------------------------------------------------

  function column(feature) {
    const out = new Array(tokens.length).fill(0);
    const [at, activations] = dictionary().columns[feature];
    at.forEach((token, i) => { out[token] = activations[i]; });
    return out;
  }

  // Anything active is visibly so: a share starts at 8 of 100, and only silence has no shade.
  const share = (value, top) => (value > 0 && top > 0 ? 8 + 92 * Math.min(1, value / top) : 0);

  function shade() {
    const one = view.feature !== null;
    values = one ? column(view.feature) : dictionary().peak;
    const most = values.reduce((a, b) => Math.max(a, b), 0);
    const top = one ? most : dictionary().scale;
    cells.forEach((cell, i) => cell.style.setProperty("--share", share(values[i], top).toFixed(1)));
    root.classList.toggle("one-feature", one);
    const label = one ? dictionary().labels[view.feature] : null;
    $("shading-name").textContent = one
      ? `Feature ${view.feature}${label ? `: ${label}` : ""}`
      : "Strongest activation of each token";
    $("clear").hidden = !one;
    const extent = `on ${values.filter((value) => value > 0).length} of ${count(readable, "token")}`;
    $("shading-extent").textContent = one ? extent : "";
    $("scale-max").textContent = number(top) + (most > top ? "+" : "");
    for (const button of document.querySelectorAll(".choose"))
      button.setAttribute("aria-pressed", String(Number(button.dataset.feature) === view.feature));
    readout();
    document.dispatchEvent(new CustomEvent("shaded", { detail: view.feature }));
  }

  function choose(feature) {
    view.feature = feature;
    shade();
    const [name, extent, most] = ["shading-name", "shading-extent", "scale-max"].map((id) => $(id).textContent);
    say(feature === null ? name : `Shaded by feature ${feature}, active ${extent}, at most ${most}`);
  }

  function readout() {
    const i = view.near ?? view.pinned;
    if (i === null) return;
    const l0 = dictionary().l0[i];
    const parts = l0 === null ? ["not read"] : [`L0 ${l0}`, `activation ${number(values[i])}`];
    $("readout").replaceChildren(make("b", "", tokens[i].name), ` ${parts.join(" · ")}`);
  }

  const say = (text) => { $("live").textContent = text; };

  // --- Lists of features --------------------------------------------------------------------------------------------

  function row(feature, activation) {
    const { link, labels, scale } = dictionary();
    const item = make("li", "feature");
    const button = make("button", "choose");
    button.dataset.feature = feature;
    button.setAttribute("aria-pressed", feature === view.feature);
    const bar = make("span", "bar");
    bar.append(make("i"));
    bar.firstChild.style.setProperty("--share", share(activation, scale).toFixed(1));
    button.append(make("span", "id", feature), bar, make("span", "value", number(activation)));
    if (labels[feature]) button.append(make("span", "label", labels[feature]));
    item.append(button);
    if (link) {
      const out = make("a", "out", "↗");
      out.href = link + feature;
      out.target = "_blank";
      out.rel = "noopener noreferrer";
      out.title = "Open on Neuronpedia";
      out.setAttribute("aria-label", `Feature ${feature} on Neuronpedia`);
      item.append(out);
    }
    return item;
  }

  function strongestRow(feature) {
    const item = row(feature.id, feature.max);
    const { name } = tokens[feature.token];
    const jump = make("button", "jump");
    jump.dataset.token = feature.token;
    jump.append(make("span", "", name));
    if (feature.tokens > 1) jump.append(make("small", "", `×${feature.tokens}`));
    jump.title = `Strongest on ${name}; active on ${count(feature.tokens, "token")}, mean ${number(feature.mean)}`;
    jump.setAttribute("aria-label", `Go to ${name}. ${jump.title}`);
    item.firstChild.after(jump);
    return item;
  }

  function panel() {
    const i = view.pinned ?? view.near;
    if (i === null) return;
    const token = tokens[i];
    const l0 = dictionary().l0[i];
    const head = make("div", "token-title");
    head.append(make("h2", "", token.name));
    if (view.pinned !== null) {
      head.append(make("button", "quiet", "Unpin"));
      head.lastChild.id = "unpin";
    }
    const facts = [`token ${token.position}`, `id ${token.id}`, ...(l0 === null ? [] : [`L0 ${l0}`])];
    const meta = make("p", "meta", facts.join(" · "));
    if (token.piece !== token.name.replaceAll("·", "▁")) meta.append(" · ", make("code", "", token.piece));
    $("token-head").replaceChildren(head, meta);
    const top = dictionary().top[i];
    $("features").replaceChildren(...top.map(([feature, activation]) => row(feature, activation)));
    if (!token.read) $("token-head").append(make("p", "hint", "Not read: left out of every number on this page."));
    else if (!top.length) $("token-head").append(make("p", "hint", "No feature is active here."));
  }

  // --- Tokens -------------------------------------------------------------------------------------------------------

  let reachable = 0; // roving tabindex: Tab stops at one token, the arrow keys move it

  function reach(i) {
    cells[reachable].tabIndex = -1;
    reachable = i;
    cells[i].tabIndex = 0;
  }

  function look(i) {
    view.near = i;
    readout();
    if (view.pinned === null) panel();
  }

  function pin(i) {
    if (view.pinned !== null) cells[view.pinned].setAttribute("aria-selected", "false");
    view.pinned = i;
    root.classList.toggle("has-pin", i !== null);
    panel();
    if (i === null) return say("Nothing pinned");
    reach(i);
    view.near = i;
    cells[i].setAttribute("aria-selected", "true");
    readout();
    cells[i].scrollIntoView({ block: "nearest" }); // on a narrow screen the panel may have come up over it
    const { l0, top } = dictionary();
    say(`Pinned ${tokens[i].name}, token ${tokens[i].position}. ` + (l0[i] === null ? "Not read."
      : `${count(l0[i], "active feature")}` + (top[i].length ? `, strongest ${top[i][0][0]}.` : ".")));
  }

  function focusToken(i) {
    reach(i);
    cells[i].focus({ preventScroll: true });
    cells[i].scrollIntoView({ block: "nearest" });
  }

  // The token above or below: the nearest one by its middle on the next line that has any.
  function vertical(from, step) {
    const box = (i) => cells[i].getClientRects()[0] ?? cells[i].getBoundingClientRect();
    const here = box(from);
    const middle = (rect) => (rect.left + rect.right) / 2;
    let best = from, line = null;
    for (let i = from + step; i >= 0 && i < cells.length; i += step) {
      const rect = box(i);
      if (Math.abs(rect.top - here.top) < here.height / 2) continue;
      line ??= rect;
      if (Math.abs(rect.top - line.top) > here.height / 2) break;
      if (best === from || Math.abs(middle(rect) - middle(here)) < Math.abs(middle(box(best)) - middle(here))) best = i;
    }
    return best;
  }

  const toggle = (i) => pin(i === view.pinned ? null : i);
  const keys = {
    ArrowRight: (i) => focusToken(Math.min(i + 1, cells.length - 1)),
    ArrowLeft: (i) => focusToken(Math.max(i - 1, 0)),
    ArrowDown: (i) => focusToken(vertical(i, 1)),
    ArrowUp: (i) => focusToken(vertical(i, -1)),
    Home: () => focusToken(0),
    End: () => focusToken(cells.length - 1),
    Enter: toggle,
    " ": toggle,
  };

  // --- Events -------------------------------------------------------------------------------------------------------

  const tokenAt = (event) => place.get(event.target.closest(".token"));

  $("tokens").addEventListener("click", (event) => {
    const i = tokenAt(event);
    // A click that ends a selection of text is not meant for the token under it.
    if (i === undefined || !getSelection().isCollapsed) return;
    cells[i].focus({ preventScroll: true });
    toggle(i);
  });
  $("tokens").addEventListener("pointerover", (event) => {
    const i = tokenAt(event);
    if (i !== undefined && event.pointerType !== "touch") look(i);
  });
  $("tokens").addEventListener("focusin", (event) => {
    reach(tokenAt(event));
    look(reachable);
  });
  $("tokens").addEventListener("keydown", (event) => {
    const i = tokenAt(event);
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key](i);
  });
  // Escape lets go of one thing at a time: the pinned token first, then the chosen feature.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.target.closest("select")) return;
    if (view.pinned !== null) release();
    else if (view.feature !== null) choose(null);
  });
  document.querySelector(".panels").addEventListener("click", (event) => {
    const target = event.target.closest("button");
    if (!target) return;
    if (target.id === "unpin") return release();
    if (target.dataset.token !== undefined) {
      pin(Number(target.dataset.token));
      return focusToken(view.pinned);
    }
    const feature = Number(target.dataset.feature);
    choose(feature === view.feature ? null : feature);
  });
  $("clear").addEventListener("click", () => {
    choose(null);
    focusToken(reachable);
  });
  $("dictionary")?.addEventListener("change", (event) => {
    view.dictionary = Number(event.target.value);
    view.feature = null;
    start();
    say(`Dictionary at ${dictionary().site}`);
  });

  // The button that let go may be about to vanish, and the keyboard's place with it: give it the token.
  function release() {
    const inPanel = $("panel").contains(document.activeElement);
    pin(null);
    if (inPanel) focusToken(reachable);
  }

  function start() {
    $("strongest").replaceChildren(...dictionary().strongest.map(strongestRow));
    shade();
    panel();
  }

  if (cells.length) reach(0);
  // A browser may restore the select of an earlier visit.
  if ($("dictionary")) $("dictionary").value = "0";
  start();
})();
