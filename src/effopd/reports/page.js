"use strict";
// Figures, tables and settings of the report. Text from records goes in through textContent only.

const data = JSON.parse(document.getElementById("data").textContent);
const plots = new Map(); // element -> figure, so that a change of theme can redraw all

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
}

function swatch(color) {
  const dot = element("span", { class: "swatch", "aria-hidden": "true" });
  dot.style.background = color;
  return dot;
}

// In print: figures that fit A4 and Letter, and dark ink whatever the screen shows.
const PAPER = { width: 680, "--ink": "#000", "--muted": "#444", "--grid": "#ddd", "--surface": "#fff" };

function themed(layout, node, printing) {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => (printing ? PAPER[name] : style.getPropertyValue(name).trim());
  const [ink, muted, grid, surface] = ["--ink", "--muted", "--grid", "--surface"].map(read);
  const narrow = !printing && node.clientWidth < 560;
  const family = getComputedStyle(document.body).fontFamily;
  const axis = {
    gridcolor: grid, linecolor: muted, tickcolor: muted, zeroline: false, showline: false,
    automargin: true, tickfont: { color: muted }, ticks: "", fixedrange: false,
  };
  const titled = (each) => ({ ...each.title, standoff: 10, font: { color: muted, size: narrow ? 12 : 13 } });
  return {
    ...layout,
    autosize: !printing,
    ...(printing && { width: PAPER.width, height: node.clientHeight }),
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family, size: narrow ? 12 : 13, color: ink },
    margin: { l: narrow ? 36 : 60, r: narrow ? 54 : 64, t: 36, b: 48, pad: 4 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: grid, activecolor: muted, orientation: "h" },
    hoverlabel: { bgcolor: surface, bordercolor: muted, align: "left", font: { family, color: ink, size: 13 } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
    xaxis: { ...axis, ...layout.xaxis, title: titled(layout.xaxis), showgrid: false, showline: true },
    yaxis: { ...axis, ...layout.yaxis, title: titled(layout.yaxis) },
    shapes: layout.shapes.map((shape) => ({ ...shape, line: { ...shape.line, color: muted } })),
    annotations: layout.annotations.map((note) => ({ ...note, font: { ...note.font, color: muted } })),
  };
}

function draw(node, figure, printing = false) {
  plots.set(node, figure);
  const empty = !figure.data.some((trace) => trace.x.length > 0);
  node.classList.toggle("empty", empty);
  if (empty) {
    Plotly.purge(node);
    node.textContent = "Nothing recorded yet.";
    return;
  }
  if (!node.classList.contains("js-plotly-plot")) node.textContent = "";
  Plotly.react(node, structuredClone(figure.data), themed(figure.layout, node, printing), {
    responsive: !printing,
    displaylogo: false,
    displayModeBar: node.clientWidth < 560 ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
  });
}

function redraw(printing = false) {
  for (const [node, figure] of plots) draw(node, figure, printing);
}

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
fillSettings();
document.getElementById("axis").addEventListener("change", drawCurves);
document.getElementById("csv").addEventListener("click", downloadCsv);
for (const query of ["(prefers-color-scheme: dark)", "(max-width: 44rem)"]) {
  matchMedia(query).addEventListener("change", () => redraw());
}
addEventListener("beforeprint", () => redraw(true));
addEventListener("afterprint", () => redraw());
