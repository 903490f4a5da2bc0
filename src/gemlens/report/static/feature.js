// Of a file with several features: arrow keys go to the next, also where that is in the next file; titles follow.
(() => {
  const shelf = document.querySelector(".shelf");
  if (!shelf) return;
  const { before, after } = JSON.parse(document.getElementById("data").textContent);
  const articles = [...shelf.children];
  const ending = document.title.slice(document.title.lastIndexOf(" · "));
  // Not :target, which is not known yet when this runs.
  const shown = () => articles.find((article) => `#${article.id}` === location.hash) ?? articles[0];

  function follow() {
    document.title = shown().dataset.title + ending;
    scrollTo(0, 0);
  }
  function go(step) {
    const next = articles[articles.indexOf(shown()) + step];
    if (next) location.hash = next.id;
    else if (step < 0 ? before : after) location.href = step < 0 ? before : after;
  }
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.target.closest("input, select")) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
  follow();
})();
