// The index of many features. Everything from the data enters the document as textContent.
(() => {
  const $ = (id) => document.getElementById(id);
  const { together, rows } = JSON.parse($("data").textContent);
  const STEP = 200;
  const [ID, LABEL, TOKENS, BEFORE, PEAK, AFTER, MAX, SHARE, FIRES] = rows[0].keys();
  // What a row is searched by; tokens without the signs of their spaces.
  const texts = rows.map((row) =>
    [row[LABEL], row[TOKENS].join(" ").replaceAll("·", " "), row[BEFORE] + row[PEAK] + row[AFTER]].join("\n").toLowerCase());
  const orders = {
    id: (a, b) => rows[a][ID] - rows[b][ID],
    // Those that never fired are no rarity: they come last.
    rare: (a, b) => (rows[a][SHARE] || Infinity) - (rows[b][SHARE] || Infinity) || a - b,
    often: (a, b) => rows[b][SHARE] - rows[a][SHARE] || a - b,
    strong: (a, b) => rows[b][MAX] - rows[a][MAX] || a - b,
  };
  let found = [];
  let shown = 0;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function line(row) {
    const link = make("a");
    link.href = `pages/${String(Math.floor(row[ID] / together)).padStart(5, "0")}.html#f${row[ID]}`;
    const where = make("span", "where");
    if (row[PEAK]) {
      const before = make("span", "before");
      before.append(make("bdi", "", row[BEFORE]));
      where.append(before, make("b", "", row[PEAK]), make("span", "after", row[AFTER]));
    }
    link.append(
      make("span", "id", row[ID]),
      row[LABEL] ? make("span", "said", row[LABEL]) : make("span", "said tokens", row[TOKENS].join("  ")),
      where,
      make("span", "fires", row[FIRES]),
    );
    const item = make("li");
    item.append(link);
    return item;
  }

  function more() {
    const next = found.slice(shown, shown + STEP);
    shown += next.length;
    $("rows").append(...next.map((index) => line(rows[index])));
    $("more").hidden = shown >= found.length;
  }

  function search() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const number = words.length === 1 && /^[0-9]+$/.test(words[0]) ? words[0] : null;
    // The feature of that very number comes first, then those whose numbers begin so, then those whose texts say it.
    const rank = (index) => {
      const id = String(rows[index][ID]);
      return number === null ? 0 : id === number ? 0 : id.startsWith(number) ? 1 : 2;
    };
    const order = orders[$("sort").value];
    const matches = (index) => (number !== null && rank(index) < 2) || words.every((word) => texts[index].includes(word));
    found = rows.map((_, index) => index).filter(matches).sort((a, b) => rank(a) - rank(b) || order(a, b));
    shown = 0;
    $("rows").replaceChildren();
    more();
    if (!found.length) $("rows").append(make("li", "none", "No feature says so."));
    $("count").textContent = `${found.length.toLocaleString("en-US")} of ${rows.length.toLocaleString("en-US")}`;
  }

  $("search").addEventListener("input", search);
  $("sort").addEventListener("change", search);
  $("more").addEventListener("click", more);
  document.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    document.querySelector("#rows a")?.click();
  });
  search();
})();
