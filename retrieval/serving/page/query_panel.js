// What is asked: the seen picture, text or picture, by parts with weights; how it went.

import { make, number } from "./dom.js";
import { seenAddress } from "./pictures.js";

export class QueryPanel {
  // onWeight(part) after a weight moved, onRemove(part).
  constructor(section, pictures, { onWeight, onRemove }) {
    Object.assign(this, { section, pictures, onWeight, onRemove });
    this.lead = make("div.lead");
    this.mixture = make("ul.mixture");
    this.outcome = make("div.outcome");
    section.append(this.lead, this.mixture, this.outcome);
  }

  // `trialOf(imageId)` returns {caption, n_trials} where the strip knows them.
  show(parts, { run, trialOf }) {
    const lead = parts.find((part) => part.weight > 0) ?? parts[0] ?? null;
    const isMixture = parts.length > 1 || (parts.length === 1 && parts[0].weight < 0);
    this.section.hidden = lead === null;
    this.section.dataset.kind = lead?.kind ?? "";
    this.lead.replaceChildren(...this.#leadOf(lead, run, trialOf));
    this.mixture.hidden = !isMixture;
    this.mixture.replaceChildren(
      ...(isMixture ? parts.map((part) => this.#row(part, run, trialOf)) : []),
    );
  }

  // Lines on the outcome, one element each; keeps its height while the next is awaited.
  tell(...lines) {
    this.outcome.replaceChildren(...lines.filter(Boolean));
  }

  #leadOf(part, run, trialOf) {
    if (part === null) return [];
    if (part.kind === "text") {
      return [make("p.label", {}, "Asked"), make("blockquote.asked.spoken-text", {}, part.text)];
    }
    if (part.kind === "image") {
      const face = part.url
        ? make("img.asked", { src: part.url, alt: `The picture asked for: ${part.name}` })
        : make(
            "div.asked.blank",
            {},
            make("p", {}, "The link names a picture, but doesn't carry it. Drop it here again."),
          );
      return [
        make("p.label", {}, "Asked"),
        face,
        make("p.seen-caption", { title: part.name }, part.name),
      ];
    }
    const trial = trialOf(part.imageId);
    const caption = trial?.caption || `image ${part.imageId}`;
    const face = run
      ? this.pictures.box(seenAddress(run, part.imageId), {
          size: 512,
          alt: `Seen picture: ${caption}`,
          isEager: true,
        })
      : make("span.picture", { "data-state": "waiting" });
    const averaged = trial?.n_trials ? trialsOf(trial.n_trials) : "";
    return [
      make("p.label", {}, make("strong", {}, "Seen"), make("span.trials-averaged", {}, averaged)),
      make("div.asked", {}, face),
      make("p.seen-caption", { title: caption }, caption),
    ];
  }

  #row(part, run, trialOf) {
    const name = nameOf(part, trialOf);
    const output = make("output", {}, weightText(part.weight));
    const slider = make("input", {
      type: "range",
      min: "-1",
      max: "1",
      step: "0.05",
      value: String(part.weight),
      "aria-label": `Weight of ${name}`,
      oninput: () => {
        part.weight = Number(slider.value);
        output.textContent = weightText(part.weight);
        row.classList.toggle("is-negative", part.weight < 0);
        this.onWeight(part);
      },
    });
    const remove = make(
      "button.quiet",
      {
        type: "button",
        "aria-label": `Remove ${name}`,
        onclick: () => this.onRemove(part),
      },
      "×",
    );
    const row = make(
      "li",
      { class: part.weight < 0 ? "is-negative" : null },
      this.#thumb(part, run),
      make("span.part-name", { title: name }, name),
      remove,
      slider,
      output,
    );
    return row;
  }

  #thumb(part, run) {
    if (part.kind === "image" && part.url) return make("img.thumb", { src: part.url, alt: "" });
    if (part.kind === "trial" && run) {
      return make(
        "span.thumb",
        {},
        this.pictures.box(seenAddress(run, part.imageId), { size: 128, isEager: true }),
      );
    }
    return make("span.thumb.letter", { "aria-hidden": "true" }, "T");
  }
}

export function nameOf(part, trialOf) {
  if (part.kind === "text") return part.text;
  if (part.kind === "image") return part.name;
  return trialOf(part.imageId)?.caption || `image ${part.imageId}`;
}

const trialsOf = (n) => (n === 1 ? "one trial" : `${number(n)} trials averaged`);
const weightText = (weight) => weight.toFixed(2).replace("-", "−");

// Where the seen picture was found, as a heading line; null where no picture was seen.
export function verdict(rank, nHits, isKnown) {
  if (!isKnown)
    return make(
      "p.verdict",
      { "data-outcome": "unknown" },
      "This index doesn't record image numbers",
    );
  if (rank === 1) return make("p.verdict", { "data-outcome": "first" }, "Found at rank 1");
  if (rank !== null) return make("p.verdict", { "data-outcome": "found" }, `Found at rank ${rank}`);
  return make(
    "p.verdict",
    { "data-outcome": "missed" },
    nHits ? `Not in the top ${nHits}` : "Not found",
  );
}

// The calibrated probability that the first hit is the picture that was seen, in words.
export function confidence(probability) {
  if (probability === null || probability === undefined) {
    return make(
      "p.confidence.none",
      {},
      "No confidence: none was fitted for this query with these settings.",
    );
  }
  const percent = Math.round(100 * probability);
  return make(
    "div.confidence",
    {},
    make(
      "span.confidence-value",
      {},
      "Confidence ",
      make("b", {}, percentText(probability, percent)),
    ),
    make("span.meter", { style: { "--share": String(probability) } }),
    make("p", {}, sentence(percent)),
  );
}

// No probability is said to be 0 or 1.
function percentText(probability, percent) {
  if (probability > 0.99) return "over 99 %";
  return probability < 0.01 ? "under 1 %" : `${percent} %`;
}

function sentence(percent) {
  if (percent >= 99)
    return "Of 100 queries as clear as this one, nearly all have the right picture first.";
  if (percent <= 1)
    return "Of 100 queries as unclear as this one, hardly any has the right picture first.";
  return `Of 100 queries as clear as this one, about ${percent} have the right picture first.`;
}
