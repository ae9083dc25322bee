// The same search elsewhere: as a link, as curl, as Python, as a voxseek command; hits as files.

import { requestOf } from "./state.js";
import { make } from "./dom.js";

const quoted = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

// A picture's bytes would fill the clipboard: its file is read by the command instead.
const PLACE = "\u0000picture:";

function bodyOf(state, side) {
  const parts = state.parts.map((part) => ({
    ...part,
    base64: part.kind === "image" ? PLACE + part.name : null,
  }));
  return requestOf({ ...state, parts }, side);
}

const pieces = (text) => JSON.stringify(text).slice(1, -1);

export function asCurl(state, side, { hasToken }) {
  let body = quoted(JSON.stringify(bodyOf(state, side)));
  for (const part of state.parts.filter((part) => part.kind === "image")) {
    const marked = quoted(pieces(PLACE + part.name)).slice(1, -1);
    body = body.replace(marked, () => `'"$(base64 < ${quoted(part.name)} | tr -d '\\n')"'`);
  }
  return [
    `printf '%s' ${body} |`,
    `  curl -sS --fail-with-body ${quoted(new URL("api/search", document.baseURI).href)} \\`,
    ...(hasToken ? [`    -H "Authorization: Bearer $VOXSEEK_TOKEN" \\`] : []),
    `    -H 'Content-Type: application/json' --data-binary @-`,
  ].join("\n");
}

// JSON as Python writes it; a picture becomes a call of picture("name").
function python(value, indent = "") {
  if (value === null) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (typeof value === "string" && value.startsWith(PLACE))
    return `picture(${JSON.stringify(value.slice(PLACE.length))})`;
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const lines = Array.isArray(value)
    ? value.map((item) => inner + python(item, inner))
    : Object.entries(value).map(
        ([name, item]) => `${inner}${JSON.stringify(name)}: ${python(item, inner)}`,
      );
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return `${open}\n${lines.join(",\n")},\n${indent}${close}`;
}

export function asPython(state, side, { hasToken }) {
  const hasPicture = state.parts.some((part) => part.kind === "image");
  const bearer = `, "Authorization": f"Bearer {os.environ['VOXSEEK_TOKEN']}"`;
  const headers = `{"Content-Type": "application/json"${hasToken ? bearer : ""}}`;
  return [
    ...(hasPicture ? ["import base64"] : []),
    "import json",
    ...(hasToken ? ["import os"] : []),
    "import urllib.request",
    ...(hasPicture ? ["from pathlib import Path"] : []),
    "",
    ...(hasPicture
      ? [
          "",
          "def picture(name):",
          "    return base64.b64encode(Path(name).read_bytes()).decode()",
          "",
          "",
        ]
      : []),
    `request = ${python(bodyOf(state, side))}`,
    `address = ${JSON.stringify(new URL("api/search", document.baseURI).href)}`,
    `headers = ${headers}`,
    "asked = urllib.request.Request(address, json.dumps(request).encode(), headers)",
    "with urllib.request.urlopen(asked) as response:",
    "    answer = json.load(response)",
    'for hit in answer["results"][0]["hits"]:',
    '    print(hit["rank"], hit["row"], hit["score"], hit["metadata"])',
    "",
  ].join("\n");
}

const OPTIONS = {
  where: (value) => value && ["--where", quoted(value)],
  unsafe_from: (value) =>
    value === null ? ["--allow-unsafe"] : value !== 0.5 && [`--unsafe-from=${value}`],
  watermarked_from: (value) => value !== null && [`--watermarked-from=${value}`],
  duplicate_from: (value) => value !== null && ["--dedup", `--duplicate-from=${value}`],
  aesthetic_weight: (value) => value && [`--aesthetic-weight=${value}`],
  breadth: (value) => value !== null && [`--n-probe=${value}`],
  n_candidates: (value) => value !== null && [`--candidates=${value}`],
};

function specOf(part) {
  if (part.kind === "text") return `text:${part.text}`;
  return part.kind === "image" ? `image:${part.name}` : "brain";
}

const mixOf = (part) => [
  "--mix",
  quoted(`${part.weight < 0 ? "-" : ""}${specOf(part)}=${Math.abs(part.weight)}`),
];

function queryWords(parts) {
  const [first] = parts;
  if (parts.length > 1 || first.weight < 0) return parts.flatMap(mixOf);
  if (first.kind === "trial") return [];
  return first.kind === "text" ? ["--text", quoted(first.text)] : [quoted(specOf(first))];
}

// null where the command line can't say it: it mixes one trial at most. It asks for all images of a
// split; `placeOf(imageId)` tells which of its answers is the one.
export function asCommand(state, side, { subject, placeOf }) {
  const parts = state.parts.filter((part) => part.weight !== 0);
  const trials = parts.filter((part) => part.kind === "trial");
  if (trials.length > 1 || !parts.length) return null;
  const words = ["voxseek", "search", quoted(side.index), ...queryWords(parts)];
  if (trials.length) words.push("--run", quoted(side.run), "--subject", quoted(subject));
  words.push("-k", side.settings.k);
  for (const [name, option] of Object.entries(OPTIONS))
    words.push(...(option(side.settings[name]) || []));
  if (trials.length)
    words.push("|", "grep", "-F", quoted(`"query": ${placeOf(trials[0].imageId)},`));
  return words.join(" ");
}

// RFC 4180. A text that a spreadsheet would run as a formula gets an apostrophe in front.
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  let text = typeof value === "object" ? JSON.stringify(value) : String(value);
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// `answers` are [side name, answer] pairs; one line a hit.
export function asCsv(answers) {
  const hits = answers.flatMap(([side, answer]) =>
    answer.results[0].hits.map((hit) => ({ side, index: answer.index, hit })),
  );
  const columns = [...new Set(hits.flatMap(({ hit }) => Object.keys(hit.metadata)))];
  const head = ["side", "index", "rank", "row", "score", "n_duplicates", ...columns];
  const lines = hits.map(({ side, index, hit }) => [
    side,
    index,
    hit.rank,
    hit.row,
    hit.score,
    hit.n_duplicates,
    ...columns.map((name) => hit.metadata[name]),
  ]);
  return [head, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
