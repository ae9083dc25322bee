// All that is known of one hit, in a dialog; arrows go on to its neighbours.

import { captionOf, faceOf, isSeen, rankOf } from "./hits.js";
import { make, number, score, share, webAddress } from "./dom.js";

export class Details {
  // onAlike(hit): search for pictures like this one.
  constructor(dialog, pictures, onAlike) {
    this.dialog = dialog;
    this.pictures = pictures;
    this.onAlike = onAlike;
    dialog.addEventListener("keydown", (event) => this.#onKey(event));
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.addEventListener("close", () => this.buttons?.[this.place]?.focus());
  }

  // `buttons` are the hits' own on the page: the focus returns to the one that was shown last.
  open(hits, place, { imageId, buttons, canSearchAlike }) {
    Object.assign(this, { hits, place, imageId, buttons, canSearchAlike });
    this.#show();
    if (!this.dialog.open) this.dialog.showModal();
  }

  #onKey(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.#step(step);
  }

  #step(step) {
    const next = this.place + step;
    if (next < 0 || next >= this.hits.length) return;
    this.place = next;
    this.#show();
  }

  #show() {
    const hit = this.hits[this.place];
    const turn = (step, label, glyph) =>
      make(
        "button.turn",
        {
          type: "button",
          "aria-label": label,
          disabled: !this.hits[this.place + step],
          onclick: () => this.#step(step),
        },
        glyph,
      );
    const close = make("button", { type: "button", onclick: () => this.dialog.close() }, "Close");
    const alike = make(
      "button",
      { type: "button", onclick: () => this.#alike(hit) },
      "Search for this picture",
    );
    this.dialog.replaceChildren(
      make(
        "header",
        {},
        make("h2", { id: "details-title", tabindex: "-1" }, `Rank ${rankOf(hit)}`),
        isSeen(hit, this.imageId) ? make("span.mark", {}, "✓ seen") : null,
        make("span.choices", {}, turn(-1, "Previous hit", "‹"), turn(1, "Next hit", "›"), close),
      ),
      make(
        "div.details-body",
        {},
        make(
          "div.details-face",
          {},
          faceOf(hit, this.pictures, 768),
          this.canSearchAlike && hit.picture ? alike : null,
        ),
        make(
          "div.details-facts",
          {},
          captionOf(hit) ? make("p.details-caption", {}, captionOf(hit)) : null,
          facts(hit),
        ),
      ),
    );
    this.dialog.querySelector("h2").focus();
  }

  #alike(hit) {
    this.dialog.close();
    this.onAlike(hit);
  }
}

function facts(hit) {
  const rows = [
    ["score", [score(hit.score), make("span.meter", { style: { "--share": share(hit.score) } })]],
    ["row", [number(hit.row)]],
  ];
  if (Number.isInteger(hit.n_duplicates))
    rows.push(["near duplicates", [number(hit.n_duplicates)]]);
  for (const [name, value] of Object.entries(hit.metadata)) rows.push([name, [shown(value)]]);
  return make(
    "dl.facts",
    {},
    rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

function shown(value) {
  if (value === null || value === undefined) return make("span.none", {}, "none");
  const url = webAddress(value);
  if (url)
    return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }, value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
