
// The page of a comparison: figures and tables of the chosen world, learning rate and cost.

const at = (id) => document.getElementById(id);
const chosen = (id) => document.querySelector(`#${id} input:checked`).value;

function addChoices(id, values, texts, checked) {
  values.forEach((value, index) => {
    const input = element("input", { type: "radio", name: id, value });
    input.checked = value === checked;
    at(id).append(element("label", {}, input, element("span", {}, texts[index])));
  });
  at(id).hidden = values.length < 2;
}

function tableCell(cell) {
  const node = element("td", cell.missing ? { class: "missing" } : {}, cell.text);
  if (cell.ratio) node.append(element("span", { class: cell.gain ? "ratio gain" : "ratio" }, cell.ratio));
  if (cell.interval) node.append(element("small", {}, cell.interval));
  return node;
}

function fillTable(node, table) {
  const heads = table.columns.map((name) => element("th", { scope: "col" }, name));
  const body = element("tbody", {});
  for (const row of table.rows) {
    const name = element("span", { class: "name", title: row.label }, row.label);
    const head = element("th", { scope: "row" }, swatch(row.color), name);
    body.append(element("tr", {}, head, ...row.cells.map(tableCell)));
  }
  node.className = "compared";
  node.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), body);
}

function show() {
  const world = Number(chosen("world"));
  const cost = chosen("cost");
  const main = data.main[world][chosen("choice")][cost];
  draw(at("accuracy"), main.figure);
  fillTable(at("costs"), main.table);
  const sweep = data.sweeps[world];
  draw(at("sweep"), sweep.curves);
  draw(at("rates"), sweep.rates);
  fillTable(at("spread"), sweep.table);
  data.variants.forEach((variant, index) => {
    const shown = variant.worlds[world][cost];
    at(`variant-${index}`).hidden = shown.table.rows.length === 0;
    draw(at(`variant-plot-${index}`), shown.figure);
    fillTable(at(`variant-table-${index}`), shown.table);
  });
}

function addVariants() {
  data.variants.forEach((variant, index) => {
    const plot = element("div", {
      class: "plot", id: `variant-plot-${index}`, role: "img", "aria-label": `Accuracy: ${variant.name}`,
    });
    const text = "Variants beside the method they vary, medians and bands as above. ";
    const caption = element("figcaption", {}, text, element("code", { class: "command" }));
    const table = element("div", { class: "scroll", tabindex: "0" }, element("table", { id: `variant-table-${index}` }));
    const title = element("h2", {}, variant.name);
    at("variants").append(
      element("section", { id: `variant-${index}` }, title, element("figure", {}, plot, caption), table),
    );
  });
}

function fillPage() {
  document.title = data.title;
  at("title").textContent = data.title;
  at("headline").textContent = data.headline.replace(/ (?=[\d%])/g, "\u00a0").replace(/e-(?=\d)/g, "e\u2011");
  at("facts").textContent = data.facts.join(" · ");
  for (const [number, what] of data.highlights) {
    at("highlights").append(element("div", {}, element("dt", {}, what), element("dd", {}, number)));
  }
  addChoices("world", data.worlds.map((_, index) => String(index)), data.worlds, "0");
  const names = data.choices.map((name) => (name === "best" ? "each at its best" : name));
  addChoices("choice", data.choices, names, data.chosen);
  at("against").textContent = data.against;
  addVariants();
  for (const node of document.querySelectorAll(".command")) node.textContent = data.command;
  for (const note of data.notes) at("notes").append(element("p", { class: "note" }, note));
  at("plan").textContent = data.plan;
}

fillPage();
show();
for (const id of ["world", "choice", "cost"]) at(id).addEventListener("change", show);
document.documentElement.dataset.ready = Math.round(performance.now());
