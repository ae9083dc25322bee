// The menu that takes a search, or its hits, out of the page.

import { asCommand, asCsv, asCurl, asPython, download } from "./exporting.js";
import { isComplete } from "./state.js";
import { toast } from "./talking.js";

export class ExportMenu {
  // now() tells {state, hasToken, answers, subject, placeOf}.
  constructor(menu, now) {
    this.menu = menu;
    this.now = now;
    menu.addEventListener("click", (event) => this.#onClick(event));
    menu.addEventListener("keydown", (event) => event.key === "Escape" && this.#close());
    menu.addEventListener("toggle", () => menu.open && this.#enable());
    addEventListener("pointerdown", (event) => menu.contains(event.target) || (menu.open = false));
  }

  #enable() {
    const { state, answers } = this.now();
    const has = { link: true, curl: isComplete(state), csv: answers.length > 0 };
    Object.assign(has, { python: has.curl, voxseek: has.curl, json: has.csv });
    for (const button of this.menu.querySelectorAll("[data-export]"))
      button.disabled = !has[button.dataset.export];
  }

  #close() {
    this.menu.open = false;
    this.menu.querySelector("summary").focus();
  }

  #onClick(event) {
    const kind = event.target.dataset?.export;
    if (!kind) return;
    const { state, hasToken, answers, subject, placeOf } = this.now();
    const [side] = state.sides;
    const name = `voxseek-${side.index}`;
    const actions = {
      link: () => copy(location.href, linkWords(state)),
      curl: () => copy(asCurl(state, side, { hasToken }), "Copied as curl."),
      python: () => copy(asPython(state, side, { hasToken }), "Copied as Python."),
      voxseek: () => copyCommand(asCommand(state, side, { subject, placeOf })),
      csv: () => download(`${name}.csv`, "text/csv", asCsv(answers)),
      json: () =>
        download(
          `${name}.json`,
          "application/json",
          JSON.stringify(Object.fromEntries(answers), null, 1),
        ),
    };
    actions[kind]();
    this.#close();
  }
}

const linkWords = (state) =>
  state.parts.some((part) => part.kind === "image")
    ? "Link copied. It names the picture, but doesn't carry it."
    : "Link copied.";

const copyCommand = (command) =>
  command === null
    ? toast("The command line mixes one trial at most.")
    : copy(command, "Copied. Put the folders in place of the names.");

async function copy(text, words) {
  try {
    await navigator.clipboard.writeText(text);
    toast(words);
  } catch {
    toast("The browser didn't allow copying: pages over plain HTTP may copy on this machine only.");
  }
}
