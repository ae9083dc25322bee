// Two ranked lists side by side: which hits they share, and lines between these.

import { makeSvg } from "./dom.js";

// The value that says that two hits are the same picture: the row within one index, else what both
// indexes record of a picture. null where nothing tells.
export function sharedKey(a, b) {
  if (a.fingerprint === b.fingerprint) return { name: "row", of: (hit) => hit.row };
  const names = (answer) => new Set(Object.keys(answer.results[0].hits[0]?.metadata ?? {}));
  const [inA, inB] = [names(a), names(b)];
  const name = ["url", "URL", "image_id"].find((column) => inA.has(column) && inB.has(column));
  return name ? { name, of: (hit) => hit.metadata[name] ?? null } : null;
}

// Pairs of places (from 0) of hits that both lists hold, in the order of the first.
export function sharedHits(a, b, key) {
  const places = new Map();
  for (const [place, hit] of b.entries()) if (key.of(hit) !== null) places.set(key.of(hit), place);
  return a.flatMap((hit, place) =>
    places.has(key.of(hit)) ? [[place, places.get(key.of(hit))]] : [],
  );
}

export function drawLinks(container, lists, pairs, isSeenAt) {
  const n = Math.max(...lists.map((list) => list.childElementCount), 1);
  const lines = pairs.map(([left, right]) => {
    const y = [left + 0.5, right + 0.5];
    const line = makeSvg("path", {
      d: `M0 ${y[0]} C50 ${y[0]} 50 ${y[1]} 100 ${y[1]}`,
      "vector-effect": "non-scaling-stroke",
      class: isSeenAt(left) ? "is-seen" : "",
    });
    link([lists[0].children[left], lists[1].children[right]], line);
    return line;
  });
  const drawing = makeSvg(
    "svg",
    { viewBox: `0 0 100 ${n}`, preserveAspectRatio: "none" },
    ...lines,
  );
  drawing.style.setProperty("--rows", String(n));
  container.replaceChildren(drawing);
}

// A hit, its other side and the line between light up together.
function link(items, line) {
  const all = [...items, line];
  const light = (isLit) => all.forEach((element) => element.classList.toggle("is-lit", isLit));
  for (const [side, item] of items.entries()) {
    const other = items[1 - side].dataset.rank;
    const button = item.querySelector(".hit");
    button.setAttribute(
      "aria-label",
      `${button.getAttribute("aria-label")}, rank ${other} on the other side`,
    );
    item.classList.add("is-shared");
    item.addEventListener("pointerenter", () => light(true));
    item.addEventListener("pointerleave", () => light(false));
    item.addEventListener("focusin", () => light(true));
    item.addEventListener("focusout", () => light(false));
  }
}
