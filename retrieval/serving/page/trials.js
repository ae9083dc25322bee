// The strip of seen pictures: pages of a run's images, found by caption or number, by keyboard too.

import { debounce, make, number } from "./dom.js";
import { seenAddress } from "./pictures.js";

const PAGE = 1000; // trials asked of the server at a time
const SIZE = 128;
const FIRST_THUMB = 60; // pixels, until one can be measured

export class TrialStrip {
  constructor({ section, strip, find, earlier, later, place }, api, pictures, onPick) {
    Object.assign(this, { section, strip, find, earlier, later, place, api, pictures, onPick });
    this.run = null;
    this.trials = [];
    this.matches = [];
    this.start = 0;
    this.chosen = null;
    earlier.addEventListener("click", () => this.#turn(-1));
    later.addEventListener("click", () => this.#turn(1));
    find.addEventListener(
      "input",
      debounce(120, () => this.#search()),
    );
    find.addEventListener("keydown", (event) => this.#onFindKey(event));
    strip.addEventListener("keydown", (event) => this.#onKey(event));
    new ResizeObserver(() => this.#refit()).observe(strip);
  }

  // Show the trials of a run ({name, n_images}), or nothing.
  async show(run) {
    this.section.hidden = run === null;
    if (run?.name === this.run?.name) return;
    this.run = run;
    this.trials = [];
    this.matches = [];
    this.start = 0;
    if (run !== null) await this.#loadAll(run);
  }

  // Mark the image that is asked for, and bring it into view.
  choose(imageId) {
    this.chosen = imageId;
    const at = this.matches.findIndex((trial) => trial.image_id === imageId);
    if (at >= 0) this.start = this.#pageOf(at);
    this.#render();
  }

  trialOf(imageId) {
    return this.trials.find((trial) => trial.image_id === imageId) ?? null;
  }

  // The trial after (1) or before (-1) the chosen one, among those found.
  neighbour(step) {
    const at = this.matches.findIndex((trial) => trial.image_id === this.chosen);
    const next = at < 0 ? (step > 0 ? 0 : this.matches.length - 1) : at + step;
    return this.matches[next]?.image_id ?? null;
  }

  get #perPage() {
    const style = getComputedStyle(this.strip);
    const pixels = (name) => parseFloat(style[name]) || 0;
    const width = this.strip.clientWidth - pixels("paddingLeft") - pixels("paddingRight");
    const thumb = this.strip.firstElementChild?.offsetWidth || FIRST_THUMB;
    const gap = pixels("columnGap");
    return Math.max(1, Math.floor((width + gap) / (thumb + gap)));
  }

  #pageOf(at) {
    return Math.floor(at / this.#perPage) * this.#perPage;
  }

  async #loadAll(run) {
    this.error = null;
    try {
      while (this.trials.length < run.n_images) {
        const place = `offset=${this.trials.length}&limit=${PAGE}`;
        const path = `api/runs/${encodeURIComponent(run.name)}/trials?${place}`;
        const page = await this.api.get(path);
        if (this.run !== run) return;
        if (!page.length) break;
        const isFirst = this.trials.length === 0;
        this.trials.push(...page);
        this.#match();
        if (isFirst || this.#isSearching()) this.#render();
        else this.#say();
      }
    } catch (error) {
      if (this.run !== run) return;
      this.error = error;
    }
    this.choose(this.chosen);
    this.onLoad?.();
  }

  #isSearching() {
    return this.find.value.trim() !== "";
  }

  #match() {
    const words = this.find.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const isMatch = (trial) => {
      const text = `${trial.caption ?? ""} ${trial.image_id}`.toLowerCase();
      return words.every((word) => text.includes(word));
    };
    this.matches = words.length ? this.trials.filter(isMatch) : this.trials;
  }

  #search() {
    this.#match();
    this.start = 0;
    this.#render();
  }

  #turn(step) {
    const next = this.start + step * this.#perPage;
    if (next < 0 || next >= this.matches.length) return false;
    this.start = next;
    this.#render();
    return true;
  }

  #refit() {
    if (this.shownPerPage === this.#perPage) return;
    this.start = this.#pageOf(this.start);
    this.#render();
  }

  #render() {
    const perPage = (this.shownPerPage = this.#perPage);
    const hadFocus = this.strip.contains(document.activeElement);
    const shown = this.matches.slice(this.start, this.start + perPage);
    const options = shown.map((trial) => this.#option(trial));
    this.strip.replaceChildren(...options);
    const current =
      options.find((option) => option.getAttribute("aria-selected") === "true") ?? options[0];
    if (current) current.tabIndex = 0;
    if (hadFocus) current?.focus();
    this.earlier.disabled = this.start === 0;
    this.later.disabled = this.start + perPage >= this.matches.length;
    this.#say();
  }

  #option(trial) {
    const caption = trial.caption || `image ${trial.image_id}`;
    const option = make(
      "div.trial",
      {
        role: "option",
        tabindex: "-1",
        "aria-selected": String(trial.image_id === this.chosen),
        "aria-label": caption,
        title: caption,
        "data-image": String(trial.image_id),
        onclick: () => this.onPick(trial.image_id),
      },
      this.pictures.box(seenAddress(this.run.name, trial.image_id), { size: SIZE, isEager: true }),
    );
    return option;
  }

  #say() {
    const n = this.matches.length;
    if (this.error) this.place.textContent = this.error.message;
    else if (n) {
      const last = Math.min(this.start + this.shownPerPage, n);
      this.place.textContent = `${number(this.start + 1)}–${number(last)} of ${number(n)}`;
    } else this.place.textContent = this.#isSearching() ? "none found" : "loading";
  }

  #onFindKey(event) {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    event.preventDefault();
    if (event.key === "Enter" && this.matches.length)
      this.onPick(this.matches[this.start].image_id);
    this.strip.querySelector("[tabindex='0']")?.focus();
  }

  #onKey(event) {
    const options = [...this.strip.children];
    const at = options.indexOf(document.activeElement);
    const focus = (place) => {
      for (const option of options) option.tabIndex = -1;
      const option = this.strip.children[place] ?? this.strip.lastElementChild;
      if (!option) return;
      option.tabIndex = 0;
      option.focus();
    };
    const actions = {
      ArrowRight: () => (at + 1 < options.length ? focus(at + 1) : this.#turn(1) && focus(0)),
      ArrowLeft: () =>
        at > 0 ? focus(at - 1) : this.#turn(-1) && focus(this.strip.childElementCount - 1),
      PageDown: () => this.#turn(1) && focus(0),
      PageUp: () => this.#turn(-1) && focus(0),
      Home: () => focus(0),
      End: () => focus(options.length - 1),
      Enter: () => this.onPick(Number(options[at].dataset.image)),
      " ": () => this.onPick(Number(options[at].dataset.image)),
    };
    if (at < 0 || !actions[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    actions[event.key]();
  }
}
