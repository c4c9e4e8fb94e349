
// The page of an analysis: sections of figures with choices, and tables.

const at = (id) => document.getElementById(id);

function tableCell(cell) {
  const node = element("td", {}, cell.text);
  if (cell.small) node.append(element("small", {}, cell.small));
  return node;
}

function tableNode(table, labelledBy) {
  const heads = table.columns.map((name) => element("th", { scope: "col" }, name));
  const body = element("tbody", {});
  for (const row of table.rows) {
    const head = element("th", { scope: "row" }, element("span", { class: "name", title: row.label }, row.label));
    body.append(element("tr", {}, head, ...row.cells.map(tableCell)));
  }
  const node = element("table", { class: "measured" }, element("thead", {}, element("tr", {}, ...heads)), body);
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": labelledBy }, node);
}

function panelNode(panel) {
  const plot = element("div", { class: "plot", role: "img", "aria-label": panel.caption });
  const figure = element("figure", {});
  if (panel.choices.length > 1) {
    const select = element("select", {});
    panel.choices.forEach((choice, index) => select.append(element("option", { value: index }, choice.label)));
    select.addEventListener("change", () => draw(plot, panel.choices[select.value].figure));
    figure.append(element("div", { class: "controls" }, element("label", {}, `${panel.legend} `, select)));
  }
  figure.append(plot, element("figcaption", {}, panel.caption));
  return [figure, () => draw(plot, panel.choices[0].figure)];
}

function addSection(section, index) {
  const title = element("h2", { id: `section-${index}` }, section.title);
  const node = element("section", { "aria-labelledby": `section-${index}` }, title, element("p", { class: "note" }, section.text));
  if (section.table && !section.panels) node.append(tableNode(section.table, `section-${index}`));
  at("sections").append(node);
  const panels = (section.panels || []).map(panelNode);
  const wide = element("div", { class: panels.length > 1 ? "pair" : "" }, ...panels.map(([figure]) => figure));
  node.append(wide);
  if (section.table && section.panels) node.append(tableNode(section.table, `section-${index}`));
  for (const [, show] of panels) show(); // in the document, where a plot has a size
}

document.title = data.title;
at("title").textContent = data.title;
at("headline").textContent = data.headline.replace(/ (?=[\d%])/g, "\u00a0");
at("facts").textContent = data.facts.join(" · ");
at("command").textContent = data.command;
data.sections.forEach(addSection);
at("example").hidden = at("example").querySelector("article") === null;
at("inputs").textContent = data.inputs.join("\n");
at("never-moved").hidden = data.still.length === 0;
at("never-moved-count").textContent = String(data.still.length);
at("still").textContent = data.still.join("\n");
document.documentElement.dataset.ready = Math.round(performance.now());
