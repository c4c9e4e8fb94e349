"use strict";
// The rollout viewer: which sample, and how far the student was from the teacher at each token.

const parsed = new Map(); // run index -> rows, read when first looked at

function rows(index) {
  if (!parsed.has(index)) parsed.set(index, JSON.parse(at(`rollouts-${index}`)?.textContent ?? "[]"));
  return parsed.get(index);
}

function meanOf(row) {
  const known = (row.kl ?? []).filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function background(value) {
  if (value === null || value === 0) return "";
  const strength = Math.min(1, Math.abs(value) / data.kl_limit) ** 0.7 * 0.65;
  const hue = value > 0 ? "--warm" : "--cool";
  return `rgba(var(${hue}), ${strength.toFixed(3)})`;
}

function fill(select, values, labels = values) {
  select.replaceChildren(...values.map((value, i) => element("option", { value }, String(labels[i]))));
}

function chosen() {
  const step = Number(at("pick-step").value);
  const filters = {
    all: () => true,
    rewarded: (row) => row.reward > 0,
    unrewarded: (row) => !(row.reward > 0),
    unfinished: (row) => row.finish_reason === "length",
  };
  const keys = {
    divergence: (row) => meanOf(row) ?? -Infinity,
    reward: (row) => row.reward ?? -Infinity,
    length: (row) => row.tokens?.length ?? row.completion.length,
  };
  const found = rows(at("pick-run").value)
    .filter((row) => row.step === step)
    .filter(filters[at("pick-filter").value]);
  const key = keys[at("pick-order").value];
  return key ? found.sort((a, b) => key(b) - key(a)) : found;
}

function chip(name, value) {
  return element("span", {}, `${name} `, element("b", {}, value));
}

function nats(value) {
  return value === null ? "not recorded" : `${value.toFixed(4)} nats`;
}

function reading(row, i) {
  return row.masked.includes(i) ? "of the environment, not learned" : nats(row.kl[i]);
}

function tokenView(row) {
  const view = element("div", {
    class: "tokens", tabindex: "0", role: "group", "aria-label": "Completion; arrow keys move from token to token",
  });
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const idle = "Point at a token, or use the arrow keys, to read its divergence.";
  const spans = row.tokens.map((token, i) => {
    const span = element("span", {}, token.replaceAll("\n", "↵\n"));
    span.style.background = background(row.kl[i]);
    span.dataset.index = i;
    if (row.masked.includes(i)) span.classList.add("masked");
    span.title = reading(row, i);
    return span;
  });
  view.append(...spans);
  let active = -1;
  const show = (index) => {
    spans[active]?.classList.remove("at");
    active = index;
    spans[active]?.classList.add("at");
    readout.textContent = active < 0 ? idle
      : `Token ${active + 1} of ${spans.length}: “${row.tokens[active].replaceAll("\n", "↵")}”, ${reading(row, active)}`;
  };
  show(-1);
  view.addEventListener("pointerover", (event) => {
    if (event.target.dataset.index !== undefined) show(Number(event.target.dataset.index));
  });
  view.addEventListener("keydown", (event) => {
    const last = spans.length - 1;
    const next = { ArrowRight: Math.min(active + 1, last), ArrowLeft: Math.max(active - 1, 0), Home: 0, End: last }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    show(next);
    spans[next].scrollIntoView({ block: "nearest" });
  });
  return [view, readout];
}

function showSample(row) {
  const mean = meanOf(row);
  const chips = element("div", { class: "chips" }, chip("problem", row.problem_id),
    chip("reward", row.reward === null ? "not scored" : String(row.reward)),
    chip("finished by", row.finish_reason));
  if (mean !== null) chips.append(chip("mean KL", nats(mean)));
  if (row.tokens) chips.append(chip("tokens", String(row.tokens.length)));
  const heading = (text) => element("h3", {}, text);
  const completion = row.tokens ? tokenView(row)
    : [element("pre", {}, row.completion), element("p", { class: "readout" }, "No divergence was recorded for this sample.")];
  at("sample").replaceChildren(chips, heading("Prompt"), element("pre", {}, row.prompt),
    heading("Completion"), ...completion);
}

function showList() {
  const found = chosen();
  const buttons = found.map((row) => {
    const mark = row.reward > 0 ? "✓" : "✗";
    const mean = meanOf(row);
    const side = `${row.reward === null ? "" : mark} ${mean === null ? "" : mean.toFixed(3)}`;
    return element("button", { type: "button" }, element("span", {}, row.problem_id), element("span", {}, side));
  });
  const select = (index) => {
    buttons.forEach((button, i) => button.setAttribute("aria-current", String(i === index)));
    showSample(found[index]);
  };
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => select(index));
    button.addEventListener("keydown", (event) => {
      const next = { ArrowDown: index + 1, ArrowUp: index - 1 }[event.key];
      if (buttons[next] === undefined) return;
      event.preventDefault();
      buttons[next].focus();
      select(next);
    });
  });
  at("samples").replaceChildren(...buttons);
  if (found.length) select(0);
  else at("sample").replaceChildren(element("p", { class: "note" }, "No sample matches."));
}

function knownSteps() {
  return [...new Set(rows(at("pick-run").value).map((row) => row.step))].sort((a, b) => a - b);
}

function showSteps() {
  fill(at("pick-step"), knownSteps());
  showList();
}

function fillLegend() {
  const low = data.kl_negative ? -data.kl_limit : 0;
  const stops = Array.from({ length: 9 }, (_, i) => background(low + ((data.kl_limit - low) * i) / 8) || "transparent");
  const scale = element("i", { "aria-hidden": "true" });
  scale.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
  const word = (text) => element("span", {}, text);
  at("kl-legend").replaceChildren(word("KL per token:"), word(String(low)), scale, word(`${data.kl_limit} nats or more`));
}

function startViewer(listen = true) {
  const [labels, indices] = [data.samples.map((run) => run.label), data.samples.map((run) => run.index)];
  fill(at("pick-run"), indices, labels);
  at("pick-run").selectedIndex = labels.length - 1;
  fillLegend();
  showSteps();
  if (!listen) return;
  at("pick-run").addEventListener("change", showSteps);
  for (const id of ["pick-step", "pick-filter", "pick-order"]) at(id).addEventListener("change", showList);
}

if (at("viewer")) startViewer();
