// The page: one state, two sides, and what the reader does to them.

import { Api } from "./api.js";
import { drawLinks, sharedHits, sharedKey } from "./comparison.js";
import { Details } from "./details.js";
import { byId, count, debounce, make, number } from "./dom.js";
import { ExportMenu } from "./export_menu.js";
import { isSeen, seenRank, spokenHit } from "./hits.js";
import { listenForKeys } from "./keys.js";
import { Pictures, readPicture } from "./pictures.js";
import { listenForPictures } from "./picture_input.js";
import { confidence, nameOf, QueryPanel, verdict } from "./query_panel.js";
import { ResultPane } from "./result_pane.js";
import { SettingsForm, showIndexFacts } from "./settings_form.js";
import { fromHash, isComplete, makePart, seenImage, toHash } from "./state.js";
import { askForToken, say, toast } from "./talking.js";
import { TrialStrip } from "./trials.js";

const SIDES = ["A", "B"];

const api = new Api(askForToken);
const pictures = new Pictures(api);
let state = fromHash(location.hash);
let indexes = [];
let runs = [];
let isMixing = false;
let isReconnecting = false;

const details = new Details(byId("details"), pictures, searchAlike);
const strip = new TrialStrip(
  Object.fromEntries(
    ["find", "strip", "earlier", "later", "place"]
      .map((id) => [id, byId(id)])
      .concat([["section", byId("trials")]]),
  ),
  api,
  pictures,
  (imageId) => add(makePart("trial", { imageId })),
);
const query = new QueryPanel(byId("query"), pictures, {
  onWeight: debounce(200, () => changed({ isNew: false })),
  onRemove: (part) => {
    state.parts = state.parts.filter((other) => other !== part);
    changed();
  },
});
const forms = SIDES.map(
  (name, place) =>
    new SettingsForm(sectionOf("settings", place), {
      name,
      onChange: () => changed({ isNew: false }),
      onAbout: (index) => showIndexFacts(byId("index-facts"), index),
    }),
);
const panes = SIDES.map(
  (name, place) =>
    new ResultPane(sectionOf("results", place), name, {
      api,
      pictures,
      onAnswer: showAnswers,
      onWhere: (message) => forms[place].sayWhere(message),
      onOpen: (at) => openHit(place, at),
      onOffline: reconnect,
    }),
);

function sectionOf(kind, place) {
  return document.querySelector(`.${kind}[data-pane="${place}"]`);
}

const shown = () => (state.isComparing ? [0, 1] : [0]);
const indexOf = (side) => indexes.find((index) => index.name === side.index) ?? null;
const trialOf = (imageId) => strip.trialOf(imageId);

// Put what the server has in place of names that it doesn't, and of none.
function settle() {
  const named = (things, name) => (things.some((thing) => thing.name === name) ? name : null);
  const [a, b] = state.sides;
  a.index = named(indexes, a.index) ?? indexes[0].name;
  a.run = named(runs, a.run) ?? runs[0]?.name ?? null;
  b.index = named(indexes, b.index) ?? a.index;
  b.run = named(runs, b.run) ?? a.run;
}

// A first comparison differs in what there is more than one of.
function setApart() {
  const [a, b] = state.sides;
  const other = (things, name) => things.find((thing) => thing.name !== name)?.name;
  const isTrial = seenImage(state) !== null;
  b.settings = { ...a.settings };
  b.run = (isTrial && other(runs, a.run)) || a.run;
  b.index = (b.run === a.run && other(indexes, a.index)) || a.index;
}

function add(part) {
  state.parts = isMixing ? [...state.parts, part] : [part];
  changed();
}

// After every change of the state: the address, the form of things, then the searches.
function changed({ isNew = true } = {}) {
  if (!indexes.length) return; // start() goes on with what was asked meanwhile
  const hash = toHash(state);
  if (hash !== location.hash) history[isNew ? "pushState" : "replaceState"](null, "", hash);
  show();
  search();
}

function show() {
  if (!indexes.length) return;
  document.body.classList.toggle("is-comparing", state.isComparing);
  byId("compare").setAttribute("aria-pressed", String(state.isComparing));
  byId("mix").setAttribute("aria-pressed", String(isMixing));
  const index = indexOf(state.sides[0]);
  const isTrial = state.parts.some((part) => part.kind === "trial");
  for (const [place, form] of forms.entries()) {
    const isShown = shown().includes(place);
    sectionOf("settings", place).hidden = !isShown;
    sectionOf("results", place).hidden = !isShown;
    form.show(state.sides[place], indexes, runs, isTrial || index.takes.trial);
  }
  showWhatIsTaken(index.takes);
  query.show(state.parts, { run: state.sides[0].run, trialOf });
  const run = index.takes.trial
    ? (runs.find(({ name }) => name === state.sides[0].run) ?? null)
    : null;
  strip.show(run);
  const imageId = seenImage(state);
  if (strip.chosen !== imageId) strip.choose(imageId);
  const names = state.parts.map((part) => nameOf(part, trialOf));
  document.title = names.length ? `${names.join(" + ")} – voxseek` : "voxseek";
}

function showWhatIsTaken(takes) {
  const text = byId("text");
  text.disabled = !takes.text;
  text.placeholder = waysToAsk(takes);
  text.title = takes.text ? "" : "This index has no text encoder.";
  byId("search").disabled = !takes.text;
  byId("choose").disabled = !takes.image;
  const [part] = state.parts;
  if (state.parts.length === 1 && part.kind === "text") text.value = part.text;
}

// How a query may begin, as a sentence without its period.
function waysToAsk({ text, image, trial }) {
  const ways = [
    text && "describe a picture",
    image && "drop one here",
    trial && "pick a trial",
  ].filter(Boolean);
  if (!text && image) ways[0] = "drop a picture here";
  const words = ways.join(", ").replace(/, ([^,]*)$/, ", or $1") || "no encoder, and no run";
  return words[0].toUpperCase() + words.slice(1);
}

function introduce() {
  const { takes, n_rows: nRows } = indexOf(state.sides[0]);
  const first = () => add(makePart("trial", { imageId: strip.trials[0].image_id }));
  byId("intro").replaceChildren(
    make("h2", {}, takes.trial ? "Which picture was seen?" : "Which picture is it?"),
    make(
      "p",
      {},
      `${waysToAsk(takes)}. The nearest of ${number(nRows)} pictures then stand here, best first.`,
    ),
    make(
      "p.choices",
      {},
      takes.trial
        ? make("button.main", { type: "button", onclick: first }, "Begin with the first trial")
        : "",
    ),
  );
}

async function search() {
  byId("intro").hidden = state.parts.length > 0;
  if (!state.parts.length) introduce();
  if (!isComplete(state)) {
    for (const pane of panes) pane.clear();
    query.tell();
    return;
  }
  await Promise.all(
    shown().map((place) => {
      const side = state.sides[place];
      return panes[place].ask(state, side, { nRows: indexOf(side).n_rows });
    }),
  );
}

function retry() {
  for (const pane of panes) pane.asked = null;
  search();
}

function showAnswers(changedPane) {
  const imageId = seenImage(state);
  const isCompared = state.isComparing;
  for (const place of shown()) panes[place].show({ imageId, isCompared, onRetry: retry });
  const about = shown().map((place) => outcomeOf(panes[place], imageId));
  query.tell(...about.flat(), isCompared ? comparisonLine(imageId) : null);
  speak(changedPane, imageId);
}

function outcomeOf(pane, imageId) {
  if (!pane.answer) return [];
  const { hits } = pane;
  const isKnown = "image_id" in (hits[0]?.metadata ?? {}) || !hits.length;
  const lines = [
    imageId === null ? null : verdict(seenRank(hits, imageId), hits.length, isKnown),
    hits.length ? confidenceOf(pane.answer.results[0].confidence, imageId) : null,
  ].filter(Boolean);
  if (state.isComparing && lines.length) {
    return [make("div.outcome-of-side", { "data-side": pane.name }, lines)];
  }
  return lines;
}

// Nothing is said of a confidence that nobody expects: only a trial has a picture that was seen.
const confidenceOf = (probability, imageId) =>
  probability === null && imageId === null ? null : confidence(probability);

// Lines between the sides, and how much they agree.
function comparisonLine(imageId) {
  const [a, b] = panes;
  const line = make("p.agreement");
  byId("links").replaceChildren();
  if (!a.hits.length || !b.hits.length) return null;
  const key = sharedKey(a.answer, b.answer);
  if (key === null) {
    line.textContent =
      "These indexes have no column in common that tells which hits are the same picture.";
    return line;
  }
  const pairs = sharedHits(a.hits, b.hits, key);
  drawLinks(byId("links"), [a.list, b.list], pairs, (place) => isSeen(a.hits[place], imageId));
  const same = pairs.filter(([left, right]) => left === right).length;
  const shared = `${count(pairs.length, "hit")} shared (by ${key.name})`;
  line.textContent = `${shared}, ${same} of them at the same rank.`;
  return line;
}

function speak(pane, imageId) {
  const side = state.isComparing ? `Side ${pane.name}: ` : "";
  if (pane.error) say(`${side}${pane.error.message}`);
  else if (!pane.hits.length) say(`${side}no hits.`);
  else say(`${side}${count(pane.hits.length, "hit")}. ${spokenHit(pane.hits[0], imageId)}`);
}

function openHit(place, at) {
  const pane = panes[place];
  details.open(pane.hits, at, {
    imageId: seenImage(state),
    buttons: [...pane.list.querySelectorAll(".hit")],
    canSearchAlike: indexOf(state.sides[place]).takes.image,
  });
}

async function searchAlike(hit) {
  try {
    const blob = await api.blob(`${hit.picture.split("?")[0]}?size=512`);
    const name = `${String(hit.metadata.caption ?? `row ${hit.row}`).slice(0, 80)}.jpg`;
    await addFile(new File([blob], name, { type: blob.type }));
  } catch (error) {
    toast(error.message);
  }
}

async function addFile(file) {
  if (!indexOf(state.sides[0])?.takes.image) return toast("This index has no image encoder.");
  try {
    add(makePart("image", await readPicture(file)));
  } catch (error) {
    toast(error.message);
  }
}

async function reconnect() {
  if (isReconnecting) return;
  isReconnecting = true;
  await api.untilAlive();
  isReconnecting = false;
  toast("The server is back.");
  if (indexes.length) retry();
  else start();
}

function compare() {
  state.isComparing = !state.isComparing;
  if (state.isComparing) setApart();
  for (const form of forms) form.filters.open = !state.isComparing;
  changed();
  if (!state.isComparing) showAnswers(panes[0]);
}

function step(by) {
  const imageId = strip.neighbour(by);
  if (imageId !== null) add(makePart("trial", { imageId }));
}

// Back and forward: pictures that this tab still has are put where the link names them.
function restore() {
  const held = state.parts.filter((part) => part.base64);
  state = fromHash(location.hash);
  for (const part of state.parts) {
    const known = held.find(({ kind, name }) => kind === part.kind && name === part.name);
    if (known) Object.assign(part, { base64: known.base64, url: known.url });
  }
  settle();
  show();
  search();
}

async function start() {
  try {
    const known = await api.get("api/indexes");
    runs = known.some((index) => index.takes.trial) ? await api.get("api/runs") : [];
    indexes = known;
  } catch (error) {
    panes[0].error = error;
    panes[0].show({ imageId: null, isCompared: false, onRetry: start });
    if (error.code === "offline") reconnect();
    return;
  }
  panes[0].error = null;
  settle();
  changed({ isNew: false });
}

strip.onLoad = () => indexes.length && show();
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (text) add(makePart("text", { text }));
});
byId("mix").addEventListener("click", () => {
  isMixing = !isMixing;
  show();
  if (isMixing) toast("What you ask for next is added to the query.");
});
byId("compare").addEventListener("click", compare);
byId("help").addEventListener("click", () => byId("keys").showModal());
addEventListener("popstate", () => indexes.length && restore());
addEventListener("online", () => panes.some((pane) => pane.error?.code === "offline") && retry());
for (const form of forms)
  form.filters.open = matchMedia("(min-width: 60rem)").matches && !state.isComparing;
new ExportMenu(byId("export"), () => ({
  state,
  hasToken: api.token !== null,
  subject: runs.find(({ name }) => name === state.sides[0].run)?.subject,
  placeOf: (imageId) => strip.trials.findIndex((trial) => trial.image_id === imageId),
  answers: shown()
    .filter((place) => panes[place].answer)
    .map((place) => [SIDES[place], panes[place].answer]),
}));
listenForPictures({ onFile: addFile, onWords: toast });
listenForKeys({ compare, step, lists: () => shown().map((place) => panes[place].list) });
start();
