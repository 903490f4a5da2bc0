// The item browser. Everything from the data enters the document as textContent, so no string of it is ever parsed as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const { items, layers, scored } = JSON.parse($("data").textContent);
  const PAGE = 25;
  let shown = PAGE;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const value = (id, without) => ($(id) ? $(id).value : without);
  const number = (x) => (x >= 100 ? Math.round(x).toLocaleString("en-US") : x >= 1 ? x.toFixed(x >= 10 ? 1 : 2) : String(x));

  function chosen() {
    const which = value("which", "all"), order = value("order", "id");
    const word = $("find").value.trim().toLowerCase();
    const found = items.filter((item) => {
      if (which !== "all" && (item.margin > 0) !== (which === "right")) return false;
      if (!word) return true;
      if (word.startsWith("#")) return String(item.id) === word.slice(1);
      return [item.question, ...item.choices.map((choice) => choice.text)].some((text) => text.toLowerCase().includes(word));
    });
    if (order !== "id") found.sort((a, b) => (order === "low" ? a.margin - b.margin : b.margin - a.margin));
    return found;
  }

  function feature([id, activation], others, { labels, link }) {
    const node = make("li", others.has(id) ? "" : "only");
    const name = link ? make("a", "", id) : make("span", "", id);
    if (link) {
      name.href = link + id;
      name.target = "_blank";
      name.rel = "noopener noreferrer";
    }
    node.append(name, ` ${number(activation)}`);
    if (labels[id]) node.append(make("span", "label", ` ${labels[id]}`));
    return node;
  }

  function choiceOf(item, k, layer) {
    const { text, score, tokens, last, top } = item.choices[k];
    const node = make("div", "choice");
    const right = k === item.gold;
    const head = make("p");
    head.append(make("b", right ? "yes" : "no", scored ? (right ? "right" : "wrong") : right ? "first" : "second"), ` ${text}`);
    const facts = [`${tokens} token${tokens === 1 ? "" : "s"}`, `ends in ${last}`];
    if (scored) facts.unshift(`${score.toFixed(2)} nats`);
    const others = new Set(item.choices.flatMap((other, j) => (j === k ? [] : other.top[layer].map(([id]) => id))));
    const list = make("ul", "tops");
    list.append(...top[layer].map((each) => feature(each, others, layers[layer])));
    node.append(head, make("p", "hint", facts.join(" · ")), list);
    return node;
  }

  function itemOf(item, layer) {
    const node = make("article", "item");
    const head = make("h3", "", `#${item.id} ${item.question}`);
    if (scored) head.append(make("span", item.margin > 0 ? "hint yes" : "hint no", `  ${item.margin > 0 ? "answered right" : "answered wrong"}, margin ${item.margin.toFixed(2)}`));
    const sides = make("div", "sides");
    const order = [item.gold, ...item.choices.keys()].filter((k, i, all) => all.indexOf(k) === i);
    sides.append(...order.map((k) => choiceOf(item, k, layer)));
    node.append(head, sides);
    return node;
  }

  function draw() {
    const found = chosen();
    const layer = Number($("layer").value);
    $("items").replaceChildren(...found.slice(0, shown).map((item) => itemOf(item, layer)));
    $("count").textContent = `${found.length} of ${items.length}; the strongest features of each, those of one side alone in amber`;
    $("more").hidden = found.length <= shown;
  }

  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  document.querySelector(".controls").addEventListener("input", () => { shown = PAGE; draw(); });
  $("more").addEventListener("click", () => { shown += 4 * PAGE; draw(); });
  // A browser may restore what was chosen on an earlier visit.
  $("layer").value = "0";
  draw();
})();
