// Words to the reader that aren't results: spoken lines, short notes, the question for a token.

import { byId } from "./dom.js";

export function say(words) {
  byId("live").textContent = words;
}

let fading = 0;

export function toast(words) {
  const note = byId("toast");
  note.textContent = words;
  note.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (note.hidden = true), 4000);
}

// Resolves to a token, or null where the reader cancels.
export function askForToken(isRefused) {
  const dialog = byId("token");
  const field = byId("token-value");
  if (isRefused)
    dialog.querySelector(".reason").textContent =
      "That token was refused. Look again where the server was started.";
  field.value = "";
  dialog.returnValue = "";
  byId("token-cancel").onclick = () => dialog.close();
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const done = () => resolve(dialog.returnValue === "send" ? field.value.trim() : null);
    dialog.addEventListener("close", done, { once: true });
  });
}
