
// Figures, tables and settings of the report of one or several runs.

function drawCurves() {
  const axis = document.querySelector("#axis input:checked").value;
  draw(document.getElementById("accuracy"), data.accuracy[axis]);
  draw(document.getElementById("reverse_kl"), data.reverse_kl[axis]);
}

function fillHeader() {
  document.title = data.title;
  document.getElementById("title").textContent = data.title;
  // A number stays on the line of its noun and its unit.
  const whole = data.headline.replace(/ (?=[\d%])/g, "\u00a0");
  document.getElementById("headline").textContent = whole;
  document.getElementById("facts").textContent = data.facts.join(" · ");
  const list = document.getElementById("highlights");
  for (const [number, what] of data.highlights) {
    list.append(element("div", {}, element("dt", {}, what), element("dd", {}, number)));
  }
}

function costCell(cell) {
  const node = element("td", {}, cell.text);
  if (cell.value !== null) node.dataset.value = cell.value;
  if (data.table.ratios) {
    const gain = cell.ratio !== null && cell.ratio > 1;
    node.append(element("span", { class: gain ? "ratio gain" : "ratio" }, cell.ratio_text));
    if (cell.ratio !== null) node.dataset.ratio = cell.ratio;
  }
  return node;
}

function fillTable() {
  const table = document.getElementById("costs");
  const heads = data.table.columns.map((name) => element("th", { scope: "col" }, name));
  table.classList.toggle("with-ratios", data.table.ratios);
  table.append(element("thead", {}, element("tr", {}, ...heads)));
  for (const group of data.table.groups) {
    const title = element("th", { scope: "rowgroup", colspan: heads.length }, group.title);
    const body = element("tbody", {}, element("tr", { class: "group" }, title));
    for (const row of group.rows) {
      const name = element("span", { class: "name", title: row.label }, row.label);
      const head = element("th", { scope: "row" }, swatch(row.color), name);
      body.append(element("tr", {}, head, ...row.cells.map(costCell)));
    }
    table.append(body);
  }
  const notes = document.getElementById("notes");
  for (const note of data.notes) notes.append(element("p", { class: "note" }, note));
}

function downloadCsv() {
  const address = URL.createObjectURL(new Blob([data.csv], { type: "text/csv" }));
  element("a", { href: address, download: "effopd-summary.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function fillSearches() {
  const section = document.getElementById("search");
  section.hidden = data.searches.length === 0;
  for (const search of data.searches) {
    const plot = element("div", {
      class: "plot search", role: "img", "aria-label": `Search timeline. ${search.sentence}`,
    });
    const title = element("h3", {}, swatch(search.color), search.label);
    const text = element("p", { class: "note" }, search.sentence);
    section.append(element("div", { class: "searched" }, title, text, plot));
    draw(plot, search.figure);
  }
}

function drawForesight() {
  if (data.foresight === null) document.getElementById("watched").remove();
  else draw(document.getElementById("foresight"), data.foresight);
}

function fillSettings() {
  const list = document.getElementById("settings");
  for (const run of data.runs) {
    const head = element("summary", {}, swatch(run.color), run.label, element("small", {}, run.facts));
    const text = run.config || "This run recorded no settings.";
    list.append(element("details", {}, head, element("pre", {}, text)));
  }
}

fillHeader();
fillTable();
drawCurves();
fillSearches();
drawForesight();
fillSettings();
document.getElementById("axis").addEventListener("change", drawCurves);
document.getElementById("csv").addEventListener("click", downloadCsv);
