"use strict";
// Follows runs: asks the server for what is new and exchanges the parts of the page that changed.
// Scripts in an exchanged part do not run: the policy names every script that may.

const sources = new Map(); // name of a part -> its markup as the server sent it
const viewed = new Map(); // index of a run -> version of its samples that was fetched
let newest = null; // when the last record was written, in ms

const parts = (root) => [root.querySelector("header"), ...root.querySelector("main").children];
const nameOf = (part) => part.getAttribute("aria-label") ?? part.localName;

for (const part of parts(document)) sources.set(nameOf(part), part.outerHTML); // before anything is drawn

// Puts a new part in the place of an old one, and keeps what the reader did in it.
function replacePart(before, part) {
  for (const plot of part.querySelectorAll(".plot")) {
    const drawn = [...before.querySelectorAll(".plot")].find((node) => node.id === plot.id);
    if (drawn) plot.replaceWith(drawn);
  }
  const folded = before.querySelectorAll("details");
  part.querySelectorAll("details").forEach((node, i) => (node.open = folded[i]?.open ?? false));
  before.replaceWith(part);
}

function restorePicks(picks) {
  for (const node of document.querySelectorAll("[data-pick]")) {
    const value = picks.get(node.dataset.pick);
    const options = [...node.querySelectorAll("input, option")];
    const option = options.find((each) => each.value === value);
    if (option) option[option.localName === "input" ? "checked" : "selected"] = true;
  }
}

function exchange(markup) {
  const fresh = new DOMParser().parseFromString(markup, "text/html");
  const [picks, focused] = [picked(), document.activeElement?.id];
  const old = new Map(parts(document).map((part) => [nameOf(part), part]));
  let last = null;
  for (const part of parts(fresh)) {
    const [name, source] = [nameOf(part), part.outerHTML];
    const before = old.get(name);
    old.delete(name);
    if (before && sources.get(name) === source) {
      last = before;
      continue;
    }
    sources.set(name, source);
    document.adoptNode(part);
    if (before) replacePart(before, part);
    else if (last?.parentNode.localName === "main") last.after(part);
    else document.querySelector("main").prepend(part);
    last = part;
  }
  for (const [name, part] of old) {
    part.remove();
    sources.delete(name);
  }
  for (const node of plots.keys()) if (!node.isConnected) plots.delete(node);
  restorePicks(picks);
  if (focused && document.activeElement?.id !== focused) at(focused)?.focus();
}

// Fetches the samples of the chosen run where there are new ones. Who looks at the newest step
// stays at the newest; who chose another stays there.
async function followSamples() {
  const run = data.samples.find((each) => String(each.index) === at("pick-run")?.value);
  if (!run || viewed.get(run.index) === run.version) return;
  parsed.set(String(run.index), await ask(`/rollouts/${run.index}`));
  viewed.set(run.index, run.version);
  const select = at("pick-step");
  const [chosenStep, newestStep] = [select.value, [...select.options].at(-1)?.value ?? ""];
  const steps = knownSteps();
  fill(select, steps);
  if (chosenStep !== newestStep && steps.includes(Number(chosenStep))) select.value = chosenStep;
  else {
    select.selectedIndex = steps.length - 1;
    showList();
  }
}

function take(now) {
  const before = { runs: JSON.stringify(data.samples.map((run) => run.label)), limit: data.kl_limit, viewer: at("viewer") };
  Object.assign(data, now.data);
  exchange(now.page);
  show();
  if (!at("viewer")) return;
  const isOther = before.runs !== JSON.stringify(data.samples.map((run) => run.label));
  if (at("viewer") !== before.viewer || isOther) {
    parsed.clear();
    viewed.clear();
    startViewer(at("viewer") !== before.viewer);
  } else if (before.limit !== data.kl_limit) fillLegend();
}

function say(trouble) {
  const age = newest === null ? null : Math.max(0, Math.round((Date.now() - newest) / 1000));
  const when = age === null ? "nothing recorded yet" : age < 120 ? `last record ${age} s ago` : `last record ${Math.round(age / 60)} min ago`;
  at("pulse").textContent = trouble ?? `Following the runs; ${when}.`;
  at("pulse").classList.toggle("lost", trouble !== null);
}

function noteAge() {
  newest = data.live.age_s === null ? null : Date.now() - 1000 * data.live.age_s;
}

// What the server answers; an Error with a sentence for the reader where it refuses or is gone.
async function ask(path, headers = {}) {
  const answer = await fetch(path, { cache: "no-store", headers }).catch(() => null);
  if (answer === null) throw new Error("effopd watch does not answer; this is what it last read.");
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function poll() {
  if (!document.hidden) {
    try {
      const now = await ask("/now", { "If-None-Match": data.live.tag });
      if (now !== null) {
        take(now);
        noteAge();
      }
      await followSamples();
      say(null);
    } catch (error) {
      say(error.message);
    }
  }
  setTimeout(poll, data.live.every_ms);
}

addEventListener("DOMContentLoaded", () => {
  noteAge();
  say(null);
  document.addEventListener("change", (event) => {
    if (event.target.id === "pick-run") followSamples().catch((error) => say(error.message));
  });
  poll();
});
