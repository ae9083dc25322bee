// Ranked hits of one side: as a grid of cards, or as a list beside the other side's.

import { count, make, number, score, share, webAddress } from "./dom.js";

export const captionOf = (hit) =>
  textOf(hit.metadata.caption ?? hit.metadata.TEXT ?? hit.metadata.text);
export const urlOf = (hit) => webAddress(hit.metadata.url ?? hit.metadata.URL);

const textOf = (value) => (value === null || value === undefined ? "" : String(value));

export const isSeen = (hit, imageId) =>
  imageId !== null &&
  "image_id" in hit.metadata &&
  String(hit.metadata.image_id) === String(imageId);

// The API counts ranks from 0, people from 1.
export const rankOf = (hit) => hit.rank + 1;

// Where the seen image stands, counted from 1, or null.
export const seenRank = (hits, imageId) => {
  const hit = hits.find((other) => isSeen(other, imageId));
  return hit ? rankOf(hit) : null;
};

// What a screen reader says of a hit.
export function spokenHit(hit, imageId) {
  const words = [`Rank ${rankOf(hit)}`];
  if (isSeen(hit, imageId)) words.push("the seen picture");
  words.push(captionOf(hit) || urlOf(hit)?.hostname || `row ${hit.row}`);
  words.push(`score ${score(hit.score)}`);
  if (hit.n_duplicates) words.push(count(hit.n_duplicates, "near duplicate"));
  return words.join(", ");
}

// The picture of a hit, or, where the index has none, its words and where it comes from.
export function faceOf(hit, pictures, size) {
  if (hit.picture) return pictures.box(hit.picture, { size });
  const host = urlOf(hit)?.hostname.replace(/^www\./, "");
  return make(
    "span.picture.words",
    { "data-state": "words" },
    make("span.quote", {}, captionOf(hit) || `row ${number(hit.row)}`),
    host ? make("span.host", {}, host) : null,
  );
}

export function hitItem(hit, { pictures, imageId, isRow }) {
  const seen = isSeen(hit, imageId);
  const caption = captionOf(hit);
  const face = faceOf(hit, pictures, isRow ? 128 : 384);
  if (hit.n_duplicates) {
    face.append(
      make("span.alike", { title: "near duplicates, folded" }, `+${number(hit.n_duplicates)}`),
    );
  }
  const button = make(
    "button.hit",
    {
      type: "button",
      tabindex: "-1",
      "aria-label": spokenHit(hit, imageId),
      title: caption || null,
    },
    face,
    make("span.rank", {}, String(rankOf(hit))),
    seen ? make("span.mark", {}, "✓ seen") : null,
    make("span.score", {}, score(hit.score)),
    make("span.meter", { style: { "--share": share(hit.score) } }),
    make("span.caption", {}, hit.picture || isRow ? caption : ""),
  );
  return make("li", { class: seen ? "is-seen" : null, "data-rank": String(rankOf(hit)) }, button);
}

// Fill a list with hits. `onOpen(place)` is called for a hit that is opened.
export function showHits(list, hits, context) {
  const items = hits.map((hit) => hitItem(hit, context));
  list.replaceChildren(...items);
  const buttons = items.map((item) => item.firstElementChild);
  for (const [place, button] of buttons.entries()) {
    button.addEventListener("click", () => context.onOpen(place));
    button.addEventListener("focus", () => roveTo(buttons, place));
  }
  if (buttons.length) buttons[0].tabIndex = 0;
}

function roveTo(buttons, place) {
  for (const [other, button] of buttons.entries()) button.tabIndex = other === place ? 0 : -1;
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Arrow keys, Home and End within a list of hits; true where the key was one of them.
export function moveAmongHits(list, key, other = null) {
  const buttons = [...list.querySelectorAll(".hit")];
  if (!buttons.length) return false;
  const place = buttons.indexOf(document.activeElement);
  let next = null;
  if (key === "Home") next = 0;
  else if (key === "End") next = buttons.length - 1;
  else if (STEPS[key]) {
    const [across, down] = STEPS[key];
    if (other && across) return moveAcross(other, place);
    next = place < 0 ? 0 : place + across + down * columnsOf(buttons);
    if (next < 0 || next >= buttons.length) next = place;
  } else return false;
  buttons[next].focus();
  return true;
}

function moveAcross(other, place) {
  const buttons = [...other.querySelectorAll(".hit")];
  buttons[Math.min(Math.max(place, 0), buttons.length - 1)]?.focus();
  return true;
}

// How many cards stand in the first line.
function columnsOf(buttons) {
  const top = buttons[0].getBoundingClientRect().top;
  const second = buttons.findIndex((button) => button.getBoundingClientRect().top > top + 1);
  return second < 0 ? buttons.length : second;
}
