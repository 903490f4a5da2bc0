"use strict";
// What every page has: the theme is the system's until the reader says otherwise. Storage may be refused, above all under
// file://.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const darkSystem = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : darkSystem.matches);
  const showTheme = () => button.setAttribute("aria-pressed", isDark());
  try {
    const kept = localStorage.getItem("gemlens-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* the theme of the system, then */ }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("gemlens-theme", root.dataset.theme); } catch { /* for this visit only, then */ }
    showTheme();
  });
  darkSystem.addEventListener("change", showTheme);
  showTheme();
})();
