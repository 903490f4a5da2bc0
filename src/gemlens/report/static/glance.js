// What is known of a feature elsewhere: while one is pointed at, and once it is chosen. As everywhere, data becomes text
// content only.
(() => {
  const $ = (id) => document.getElementById(id);
  const { dictionaries } = JSON.parse($("data").textContent);
  const known = (feature) => {
    const { evidence, labels } = dictionaries[Number($("dictionary")?.value ?? 0)];
    return evidence[feature] ? { ...evidence[feature], label: labels[feature] } : null;
  };
  let wait = 0;

  function make(tag, className, ...inside) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...inside);
    return node;
  }

  function tokens(name, found) {
    return make("p", "tokens", make("b", "", name), ...found.flatMap((token) => [make("span", "", token), " "]));
  }

  function example([activation, before, peak, after]) {
    const where = make("p", "where", make("span", "before", make("bdi", "", before)), make("mark", "", peak),
      make("span", "after", after));
    return make("li", "", make("span", "value", activation), where);
  }

  function draw(place, feature, { fires, max, promoted, suppressed, examples, label }, few) {
    const said = max === null ? "never fired on the texts of its evidence" : `fires on ${fires}, at most ${max}`;
    place.replaceChildren(make("h2", "", label ? `Feature ${feature}: ${label}` : `Feature ${feature}`, make("span", "", said)));
    if (promoted.length) place.append(tokens("promotes", promoted));
    if (suppressed.length && !few) place.append(tokens("suppresses", suppressed));
    if (examples.length) place.append(make("ol", "", ...examples.slice(0, few ? 4 : 6).map(example)));
    place.hidden = false;
  }

  function leave() {
    clearTimeout(wait);
    $("glance").hidden = true;
  }

  // To the left of the row, where there is room; on a narrow screen choosing does.
  function glance(button) {
    leave();
    const feature = Number(button.dataset.feature);
    const found = known(feature);
    if (!found || found.examples.length === 0) return;
    wait = setTimeout(() => {
      const row = button.getBoundingClientRect();
      const width = Math.min(480, row.left - 32);
      if (!button.isConnected || width < 280) return;
      const card = $("glance");
      draw(card, feature, found, true);
      card.style.width = `${width}px`;
      card.style.left = `${row.left - width - 12}px`;
      card.style.top = `${Math.max(8, Math.min(row.top - 12, innerHeight - card.offsetHeight - 8))}px`;
    }, 120);
  }

  const panels = document.querySelector(".panels");
  const button = (event) => event.target.closest?.(".choose");
  panels.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    if (button(event)) glance(button(event));
    else leave();
  });
  panels.addEventListener("pointerleave", leave);
  panels.addEventListener("focusin", (event) => { if (button(event)?.matches(":focus-visible")) glance(button(event)); });
  panels.addEventListener("focusout", leave);
  panels.addEventListener("scroll", leave);
  addEventListener("scroll", leave, { passive: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") leave(); });
  document.addEventListener("shaded", ({ detail: feature }) => {
    const found = feature === null ? null : known(feature);
    if (found) draw($("evidence"), feature, found, false);
    else $("evidence").hidden = true;
  });
})();
