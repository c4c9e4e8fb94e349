"use strict";
// Figures and tables of what is picked, drawn in the colours of the screen or of paper.
// Text from records goes in through textContent only.

const at = (id) => document.getElementById(id);
const data = JSON.parse(at("data").textContent);
const plots = new Map(); // element -> figure, so that a change of theme can redraw all

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
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
    uirevision: [layout.xaxis, layout.yaxis].map((each) => each.title.text).join(), // a zoom outlives new data
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
    node.classList.remove("js-plotly-plot");
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

for (const query of ["(prefers-color-scheme: dark)", "(max-width: 44rem)"]) {
  matchMedia(query).addEventListener("change", () => redraw());
}
addEventListener("beforeprint", () => redraw(true));
addEventListener("afterprint", () => redraw());

// What is picked: the values of toggles and selects by name.
function picked() {
  const nodes = [...document.querySelectorAll("[data-pick]")];
  return new Map(nodes.map((node) => [node.dataset.pick, (node.querySelector("input:checked") ?? node).value]));
}

function show() {
  const now = picked();
  const matches = (when) => Object.entries(when).every(([name, value]) => now.get(name) === String(value));
  for (const node of document.querySelectorAll("[data-when]")) node.hidden = !matches(JSON.parse(node.dataset.when));
  for (const [id, options] of Object.entries(data.figures)) {
    const { figure } = options.find((option) => matches(option.when));
    if (plots.get(at(id)) !== figure) draw(at(id), figure);
  }
}

function downloadCsv() {
  const address = URL.createObjectURL(new Blob([data.csv], { type: "text/csv" }));
  element("a", { href: address, download: "effopd-summary.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

show();
// Listened to at the document, since parts of a live page are exchanged.
document.addEventListener("change", (event) => event.target.closest("[data-pick]") && show());
document.addEventListener("click", (event) => event.target.closest("#csv") && downloadCsv());
