// What is asked, and its permalink: the query by parts, and two sides with their settings.

// The names and defaults of the API's own request.
export const DEFAULTS = Object.freeze({
  k: 16,
  where: "",
  unsafe_from: 0.5,
  watermarked_from: null,
  duplicate_from: null,
  aesthetic_weight: 0,
  breadth: null,
  n_candidates: null,
});

// Thresholds that a switch turns on with.
export const THRESHOLDS = Object.freeze({
  unsafe_from: 0.5,
  watermarked_from: 0.8,
  duplicate_from: 0.94,
});

export const MAX_K = 1000;

let nextId = 1;

// kind "text": text. kind "trial": imageId. kind "image": base64, url, name; null when a link named
// a picture that this browser does not have.
export const makePart = (kind, fields, weight = 1) => ({ id: nextId++, kind, weight, ...fields });

export const makeState = () => ({
  parts: [],
  isComparing: false,
  sides: [
    { index: null, run: null, settings: { ...DEFAULTS } },
    { index: null, run: null, settings: { ...DEFAULTS } },
  ],
});

// The image that the subject saw, where the query is a trial's.
export const seenImage = (state) =>
  state.parts.find((part) => part.kind === "trial" && part.weight > 0)?.imageId ?? null;

export const isComplete = (state) =>
  state.parts.length > 0 && state.parts.every((part) => part.kind !== "image" || part.base64);

export const activeFilters = (settings) =>
  ["where", "unsafe_from", "watermarked_from", "duplicate_from", "aesthetic_weight"].filter(
    (name) => settings[name] !== DEFAULTS[name],
  ).length;

function queryOf(part, run) {
  if (part.kind === "text") return { text: part.text };
  if (part.kind === "image") return { image: part.base64 };
  return { run, image_id: part.imageId };
}

// The body of POST /api/search for one side.
export function requestOf(state, side) {
  const [first] = state.parts;
  const isPlain = state.parts.length === 1 && first.weight > 0;
  const mixed = () =>
    state.parts.map((part) => ({ weight: part.weight, ...queryOf(part, side.run) }));
  const query = isPlain ? queryOf(first, side.run) : { mix: mixed() };
  const settings = { ...side.settings, where: side.settings.where || null };
  return { index: side.index, queries: [query], ...settings };
}

const PREFIXES = ["", "b."];

function wordOf(part) {
  const weight = part.weight === 1 ? "" : `${part.weight}*`;
  if (part.kind === "text") return `${weight}text:${part.text}`;
  if (part.kind === "trial") return `${weight}trial:${part.imageId}`;
  return `${weight}image:${part.name}`;
}

function partOf(word) {
  const match = /^(?:(-?\d+(?:\.\d+)?)\*)?(text|trial|image):(.*)$/s.exec(word);
  if (!match) return null;
  const [, weight, kind, value] = match;
  const amount = weight === undefined ? 1 : Math.min(1, Math.max(-1, Number(weight)));
  if (kind === "text") return value.trim() ? makePart("text", { text: value }, amount) : null;
  if (kind === "image") return makePart("image", { name: value, base64: null, url: null }, amount);
  return /^\d+$/.test(value) ? makePart("trial", { imageId: Number(value) }, amount) : null;
}

// A picture's bytes are not in the link, only its name.
export function toHash(state) {
  const words = new URLSearchParams();
  for (const part of state.parts) words.append("q", wordOf(part));
  if (state.isComparing) words.set("compare", "1");
  for (const [place, side] of state.sides.entries()) {
    if (place === 1 && !state.isComparing) break;
    const prefix = PREFIXES[place];
    if (side.index !== null) words.set(`${prefix}index`, side.index);
    if (side.run !== null) words.set(`${prefix}run`, side.run);
    for (const [name, value] of Object.entries(side.settings)) {
      if (value !== DEFAULTS[name])
        words.set(prefix + name, value === null ? "off" : String(value));
    }
  }
  return `#${words}`;
}

// What a link says is not trusted further than a form's fields are: the server checks ranges.
export function fromHash(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const state = makeState();
  state.parts = words.getAll("q").map(partOf).filter(Boolean);
  state.isComparing = words.get("compare") === "1";
  for (const [place, side] of state.sides.entries()) {
    const prefix = PREFIXES[place];
    side.index = words.get(`${prefix}index`);
    side.run = words.get(`${prefix}run`);
    for (const name of Object.keys(DEFAULTS)) {
      const value = words.get(prefix + name);
      if (value === null) continue;
      if (name === "where") side.settings.where = value;
      else if (value === "off") side.settings[name] = name === "k" ? DEFAULTS.k : null;
      else if (value !== "" && Number.isFinite(Number(value))) side.settings[name] = Number(value);
    }
  }
  return state;
}
