// Pictures of the server in boxes that keep their size: waiting, shown, or said to be missing.

import { make } from "./dom.js";

// With a token the server wants a header, which <img src> can't send: then bytes are fetched when
// the box comes near the screen.
export class Pictures {
  constructor(api) {
    this.api = api;
    this.near = new IntersectionObserver((entries) => this.#load(entries), { rootMargin: "300px" });
    this.addresses = new WeakMap();
  }

  // A box with the picture at `address`, `size` pixels along its longer side.
  box(address, { size, alt = "", isEager = false } = {}) {
    const image = make("img", { alt, draggable: "false", decoding: "async" });
    const box = make("span.picture", { "data-state": "waiting" }, image);
    if (!isEager) image.loading = "lazy";
    image.addEventListener("load", () => (box.dataset.state = "shown"));
    image.addEventListener("error", () => this.#miss(box));
    const sized = sizedAddress(address, size);
    if (this.api.token === null) image.src = sized;
    else {
      this.addresses.set(box, sized);
      this.near.observe(box);
    }
    return box;
  }

  #load(entries) {
    for (const { isIntersecting, target: box } of entries) {
      if (!isIntersecting) continue;
      this.near.unobserve(box);
      this.#fetch(box);
    }
  }

  async #fetch(box) {
    const image = box.querySelector("img");
    try {
      const url = URL.createObjectURL(await this.api.blob(this.addresses.get(box)));
      const release = () => URL.revokeObjectURL(url);
      image.addEventListener("load", release, { once: true });
      image.addEventListener("error", release, { once: true });
      image.src = url;
    } catch {
      this.#miss(box);
    }
  }

  #miss(box) {
    if (box.dataset.state === "missing") return;
    box.dataset.state = "missing";
    box.append(make("span.missing", {}, "picture not available"));
  }
}

// The same origin only: what a server's answer names elsewhere is not fetched.
export function sizedAddress(address, size) {
  const url = new URL(address, document.baseURI);
  if (size) url.searchParams.set("size", String(size));
  return url.origin === location.origin ? url.pathname + url.search : "data:,";
}

export const seenAddress = (run, imageId) =>
  `api/runs/${encodeURIComponent(run)}/pictures/${imageId}`;

const MAX_SIDE = 1024;
const MAX_BYTES = 2 * 1024 * 1024;

// A file as the API takes it: its own bytes, or a smaller copy where they are many.
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap)
    throw new Error(`${file.name || "That file"} is not a picture that this browser can read.`);
  const longer = Math.max(bitmap.width, bitmap.height);
  const blob = file.size <= MAX_BYTES ? file : await shrink(bitmap, Math.min(1, MAX_SIDE / longer));
  bitmap.close();
  return {
    base64: await toBase64(blob),
    url: URL.createObjectURL(blob),
    name: file.name || "pasted picture",
  };
}

async function shrink(bitmap, scale) {
  const canvas = make("canvas", {});
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
}

function toBase64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
