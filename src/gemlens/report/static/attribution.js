"use strict";
// Shade the text by one feature instead of by all of them.
(() => {
  const LEVELS = 8;
  const data = JSON.parse(document.getElementById("data").textContent);
  const tokens = [...document.querySelectorAll(".token")];
  const buttons = [...document.querySelectorAll(".choose")];
  const shading = document.getElementById("shading");
  const clear = document.getElementById("clear");
  const all = shading.textContent;
  const number = (size) => (size >= 100 ? size.toFixed(0) : size >= 1 ? size.toFixed(2) : String(Number(size.toPrecision(3))));

  function shade(values, name) {
    const top = Math.max(...values.map(Math.abs), 0);
    tokens.forEach((token, index) => {
      [...token.classList].filter((each) => /^(for|against)-/.test(each)).forEach((each) => token.classList.remove(each));
      // By the square root, as the page was written.
      const level = top ? Math.round(LEVELS * Math.sign(values[index]) * Math.sqrt(Math.abs(values[index]) / top)) : 0;
      if (level && !token.classList.contains("unread")) token.classList.add(`${level > 0 ? "for" : "against"}-${Math.abs(level)}`);
    });
    document.querySelectorAll(".top").forEach((each) => { each.textContent = number(top); });
    shading.textContent = name;
  }

  function choose(chosen) {
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", index === chosen));
    clear.hidden = chosen === null;
    if (chosen === null) return shade(data.totals, all);
    const values = tokens.map(() => 0);
    const [positions, effects] = data.features[chosen];
    positions.forEach((position, index) => { values[position] = effects[index]; });
    shade(values, buttons[chosen].dataset.name);
  }

  buttons.forEach((button, index) => {
    button.addEventListener("click", () => choose(button.getAttribute("aria-pressed") === "true" ? null : index));
  });
  clear.addEventListener("click", () => choose(null));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") choose(null); });
})();
