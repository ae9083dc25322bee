// One side's results: asked of the server, shown, and kept while the next are awaited.

import { requestOf } from "./state.js";
import { count, make, number } from "./dom.js";
import { showHits } from "./hits.js";

const MAX_SKELETONS = 24;

export class ResultPane {
  // onAnswer() after every change of the answer; onWhere(message); onOpen(place); onOffline().
  constructor(section, name, { api, pictures, onAnswer, onWhere, onOpen, onOffline }) {
    Object.assign(this, { section, name, api, pictures, onAnswer, onWhere, onOpen, onOffline });
    this.answer = null;
    this.error = null;
    this.asked = null;
    this.running = null;
    this.summary = make("p.summary");
    this.notice = make("div.notice", { hidden: true });
    this.list = make("ol.hits", { "aria-describedby": "hits-help" });
    this.blank = make("div.blank-results");
    section.append(
      make(
        "div.results-head",
        {},
        make("span.side", { "aria-hidden": "true" }, name),
        this.summary,
      ),
      make("div.progress", { "aria-hidden": "true" }),
      this.notice,
      this.list,
      this.blank,
    );
  }

  get hits() {
    return this.answer?.results[0].hits ?? [];
  }

  clear() {
    this.running?.abort();
    this.running = null;
    Object.assign(this, { answer: null, error: null, asked: null });
    this.section.removeAttribute("aria-busy");
    this.#show();
  }

  // Ask unless the same was answered; resolves when the answer, or an error, is shown.
  async ask(state, side, { nRows }) {
    const request = requestOf(state, side);
    const asked = JSON.stringify(request);
    if (asked === this.asked && !this.error) return;
    this.running?.abort();
    const running = (this.running = new AbortController());
    this.asked = asked;
    this.nRows = nRows;
    this.section.setAttribute("aria-busy", "true");
    if (!this.answer) this.#showSkeletons(Math.min(side.settings.k, MAX_SKELETONS));
    try {
      const answer = await this.api.post("api/search", request, { signal: running.signal });
      Object.assign(this, { answer, error: null });
      this.onWhere("");
    } catch (error) {
      if (error.code === "cancelled") return;
      this.#fail(error, Boolean(side.settings.where));
    }
    if (this.running !== running) return;
    this.running = null;
    this.section.removeAttribute("aria-busy");
    this.onAnswer(this);
  }

  #fail(error, hasWhere) {
    this.error = error;
    const isWhere = (this.isWhere =
      hasWhere && error.status === 422 && /^where\b/.test(error.message));
    this.onWhere(isWhere ? error.message : "");
    if (!isWhere || error.code === "offline") this.answer = null;
    if (error.code === "offline") this.onOffline();
  }

  // Show what stands; `isCompared` as a list of rows rather than cards.
  show({ imageId, isCompared, onRetry }) {
    this.onRetry = onRetry;
    this.list.classList.toggle("rows", isCompared);
    showHits(this.list, this.hits, {
      pictures: this.pictures,
      imageId,
      isRow: isCompared,
      onOpen: this.onOpen,
    });
    this.#show();
  }

  #show() {
    this.list.classList.remove("skeletons");
    this.list.hidden = !this.hits.length;
    if (!this.hits.length) this.list.replaceChildren();
    this.section.toggleAttribute("data-stale", Boolean(this.error && this.answer));
    this.summary.textContent = this.answer ? summaryOf(this.answer, this.nRows) : "";
    const missing = this.answer?.shards_missing ?? [];
    this.notice.hidden = !missing.length;
    this.notice.textContent = missing.length
      ? `${count(missing.length, "shard")} did not answer in time (${missing.join(", ")}): ` +
        "better hits may be missing."
      : "";
    this.blank.replaceChildren(...this.#blankWords());
  }

  #blankWords() {
    const retry = make("button", { type: "button", onclick: () => this.onRetry?.() }, "Try again");
    if (this.error && this.isWhere && !this.answer) {
      return [
        make(
          "div.problem",
          {},
          make("h3", {}, "This filter can't be used"),
          make("p", {}, "What is wrong with it stands under Where."),
        ),
      ];
    }
    if (this.error && !this.answer) {
      return [
        make(
          "div.problem",
          { role: "alert" },
          make("h3", {}, titleOf(this.error)),
          make("p", {}, this.error.message),
          retry,
        ),
      ];
    }
    if (this.answer && !this.hits.length) {
      return [
        make(
          "div.problem",
          {},
          make("h3", {}, "Nothing passes these filters"),
          make("p", {}, "Loosen the predicate, or switch a filter off."),
        ),
      ];
    }
    return [];
  }

  #showSkeletons(n) {
    const box = () => make("span.picture", { "data-state": "waiting" });
    const item = () =>
      make(
        "li",
        {},
        make(
          "div.hit",
          {},
          box(),
          make("span.rank", {}, "\u00a0"),
          make("span.meter"),
          make("span.caption"),
        ),
      );
    this.blank.replaceChildren();
    this.list.hidden = false;
    this.list.classList.add("skeletons");
    this.list.replaceChildren(...Array.from({ length: n }, item));
  }
}

const TITLES = {
  offline: "The server is away",
  timeout: "That took too long",
  token: "A token is needed",
};

function titleOf(error) {
  if (TITLES[error.code]) return TITLES[error.code];
  if (error.status === 503) return "The server is busy";
  if (error.status === 504) return TITLES.timeout;
  if (error.status === 413) return "That is too large";
  return error.status >= 500 ? "The server failed" : "That can't be searched for";
}

function summaryOf(answer, nRows) {
  const hits = answer.results[0].hits.length;
  const words = [`${number(hits)} of ${number(nRows)}`];
  const { n_candidates: candidates, ...breadth } = answer.effort ?? {};
  for (const [name, value] of Object.entries(breadth)) words.push(`${name} ${number(value)}`);
  if (candidates !== undefined) words.push(count(candidates, "candidate"));
  const ms = 1000 * answer.seconds;
  words.push(ms < 10 ? `${ms.toFixed(1)} ms` : `${number(Math.round(ms))} ms`);
  return words.join(" · ");
}
