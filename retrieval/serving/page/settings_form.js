// One side's settings: its index and run, filters, number of hits, effort.

import { activeFilters, DEFAULTS, MAX_K, THRESHOLDS } from "./state.js";
import { byId, make, number } from "./dom.js";

const SWITCHES = {
  is_safe: "unsafe_from",
  is_clean: "watermarked_from",
  is_distinct: "duplicate_from",
};
const NUMBERS = [
  "k",
  "unsafe_from",
  "watermarked_from",
  "duplicate_from",
  "aesthetic_weight",
  "breadth",
  "n_candidates",
];

export class SettingsForm {
  // onChange(isLive): a field changed; onAbout(index): the reader asks what the index is.
  constructor(section, { name, onChange, onAbout }) {
    section.append(byId("settings-form").content.cloneNode(true));
    this.section = section;
    this.form = section.querySelector("form");
    this.onChange = onChange;
    this.onAbout = onAbout;
    this.filters = section.querySelector(".filters");
    this.error = section.querySelector(".where-error");
    this.error.id = `where-error-${name}`;
    section.querySelector(".side").textContent = name;
    this.#field("where").setAttribute("aria-describedby", this.error.id);
    this.#field("k").max = String(MAX_K);
    this.form.addEventListener("submit", (event) => this.#onSubmit(event));
    this.typed = null; // the field that is being typed into: no answer may overwrite it
    this.form.addEventListener("input", (event) => (this.typed = event.target));
    this.form.addEventListener("change", (event) => this.#read(event.target.name));
    this.form.addEventListener("reset", (event) => this.#onReset(event));
  }

  // Fill in the fields from a side, given the indexes and runs there are.
  show(side, indexes, runs, isTrial) {
    this.side = side;
    this.indexes = indexes;
    fill(this.#field("index"), indexes, side.index);
    fill(this.#field("run"), runs, side.run);
    this.section.querySelector(".of-run").hidden = !runs.length || !isTrial;
    this.#showFields();
    this.#showIndex(indexes.find((index) => index.name === side.index) ?? null);
  }

  // What the server said of the predicate; empty to clear it.
  sayWhere(message) {
    const field = this.#field("where");
    this.error.textContent = message;
    field.setAttribute("aria-invalid", String(Boolean(message)));
    if (message) this.filters.open = true;
  }

  #field(name) {
    return this.form.elements.namedItem(name);
  }

  #showFields() {
    const { settings } = this.side;
    if (this.typed !== this.#field("where")) this.#field("where").value = settings.where;
    for (const [name, of] of Object.entries(SWITCHES))
      this.#field(name).checked = settings[of] !== null;
    for (const name of NUMBERS) {
      const field = this.#field(name);
      if (field === this.typed) continue;
      const value = name in THRESHOLDS ? (settings[name] ?? THRESHOLDS[name]) : settings[name];
      field.value = value === null ? "" : String(value);
      field.setAttribute("aria-invalid", "false");
    }
    const active = activeFilters(settings);
    this.section.querySelector(".active").textContent = active ? `${active} on` : "";
  }

  #showIndex(index) {
    const about = this.section.querySelector(".about");
    if (index === null) return about.replaceChildren();
    const { space } = index;
    about.replaceChildren(
      make(
        "button.quiet",
        { type: "button", onclick: () => this.onAbout(index) },
        `${number(index.n_rows)} pictures · ${space.model}`,
      ),
    );
    const columns = new Set(index.columns);
    for (const label of this.form.querySelectorAll("[data-column]")) {
      const [column, ...others] = label.dataset.column.split(" ");
      const has = [column, ...others].some((name) => columns.has(name));
      label.querySelector("input").disabled = !has;
      label.title = has ? "" : `This index has no column ${column}.`;
      label.querySelector(".lacks")?.remove();
      if (!has && label.classList.contains("switch")) {
        label.append(make("span.lacks", {}, `no ${column}`));
      }
    }
    const isFlat = index.design.startsWith("flat");
    for (const label of this.form.querySelectorAll(".effort")) {
      label.querySelector("input").disabled = isFlat;
      label.title = isFlat ? "A flat index compares every row." : "";
    }
  }

  #read(name) {
    this.typed = null;
    const { side } = this;
    const { settings } = side;
    if (name === "index" || name === "run") side[name] = this.#field(name).value;
    else if (name === "where") settings.where = this.#field("where").value.trim();
    else if (name in SWITCHES) {
      const of = SWITCHES[name];
      settings[of] = this.#field(name).checked ? this.#threshold(of) : null;
    } else if (!this.#readNumber(name)) return;
    this.sayWhere("");
    this.#showFields();
    this.onChange(name);
  }

  #threshold(name) {
    const field = this.#field(name);
    return field.value !== "" && field.validity.valid ? Number(field.value) : THRESHOLDS[name];
  }

  // false where the field holds nothing that may be asked.
  #readNumber(name) {
    const field = this.#field(name);
    const isGood = field.validity.valid;
    field.setAttribute("aria-invalid", String(!isGood));
    if (!isGood) {
      field.title = field.validationMessage;
      return false;
    }
    field.title = "";
    this.side.settings[name] = field.value === "" ? DEFAULTS[name] : Number(field.value);
    return true;
  }

  #onSubmit(event) {
    event.preventDefault();
    this.#read("where");
  }

  #onReset(event) {
    event.preventDefault();
    this.typed = null;
    Object.assign(this.side.settings, DEFAULTS);
    this.sayWhere("");
    this.#showFields();
    this.onChange("reset");
  }
}

function fill(select, named, value) {
  const options = named.map(({ name }) => make("option", { value: name }, name));
  select.replaceChildren(...options);
  select.value = value ?? "";
  select.disabled = named.length < 2;
}

// The facts of an index, for its dialog.
export function showIndexFacts(dialog, index) {
  const { space } = index;
  const rows = [
    ["pictures", number(index.n_rows)],
    [
      "embeddings",
      `${space.model}, ${space.layer}, ${number(space.tokens)} × ${number(space.dim)}`,
    ],
    ["design", index.design],
    ["certificate", index.certificate],
    ["columns", index.columns.join(", ") || "none"],
    ["fingerprint", index.fingerprint],
  ];
  dialog.replaceChildren(
    make("h2", { id: "index-facts-title" }, index.name),
    make(
      "dl.facts",
      {},
      rows.map(([name, value]) =>
        make("div", {}, make("dt", {}, name), make("dd", {}, String(value))),
      ),
    ),
    make("form", { method: "dialog" }, make("button", { autofocus: true }, "Close")),
  );
  dialog.showModal();
}
