// The keys of the page. Those without Ctrl or Alt can be switched off (WCAG 2.1.4).

import { byId } from "./dom.js";
import { moveAmongHits } from "./hits.js";

const OFF = "voxseek.single-keys-off";
const isTyping = (target) => target.closest("input, textarea, select, [role='listbox']") !== null;

export function listenForKeys({ compare, step, lists }) {
  const box = byId("single-keys");
  box.checked = localStorage.getItem(OFF) === null;
  box.addEventListener("change", () => {
    if (box.checked) localStorage.removeItem(OFF);
    else localStorage.setItem(OFF, "1");
  });

  const actions = {
    "/": () => {
      const text = byId("text");
      const field = text.disabled ? byId("find") : text;
      field.focus();
      field.select();
    },
    "?": () => byId("keys").showModal(),
    c: compare,
    n: () => step(1),
    p: () => step(-1),
  };

  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") return document.activeElement?.blur();
    if (isTyping(event.target)) return;
    if (actions[event.key] && box.checked) {
      event.preventDefault();
      actions[event.key]();
    } else if (isNavigable(event) && move(event.key, lists())) event.preventDefault();
  });
}

// Arrows move among hits once one of them, or nothing, has the focus: else they scroll.
const isNavigable = (event) =>
  event.target.closest(".hit") !== null || event.target === document.body;

function move(key, all) {
  const held = all.findIndex((list) => list.contains(document.activeElement));
  const at = Math.max(held, 0);
  if (held < 0 && (key === "Home" || key === "End")) return false;
  const other = held >= 0 && all.length === 2 ? all[1 - at] : null;
  return moveAmongHits(all[at], key, other);
}
