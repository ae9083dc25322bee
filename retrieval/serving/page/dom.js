// Elements made from text. Data never pass through innerHTML: captions are strangers' words.

export const byId = (id) => document.getElementById(id);

// make("p.note", { title: "…" }, "text", child, null): attributes by name, `on…` as listeners,
// `style` as an object of custom properties (CSSOM, which a Content-Security-Policy allows).
export function make(selector, attributes = {}, ...children) {
  const [tag, ...classes] = selector.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [property, amount] of Object.entries(value))
        element.style.setProperty(property, amount);
    } else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const whole = new Intl.NumberFormat("en");

export const count = (n, noun) => `${whole.format(n)} ${noun}${n === 1 ? "" : "s"}`;
export const number = (n) => whole.format(n);

// A cosine with three decimals and a real minus sign.
export const score = (value) => (Number.isFinite(value) ? value.toFixed(3).replace("-", "−") : "–");

export const share = (value) => String(Math.min(1, Math.max(0, value || 0)));

// An address that may be followed, or null: http and https only.
export function webAddress(text) {
  if (typeof text !== "string" || !/^https?:\/\//i.test(text)) return null;
  try {
    const url = new URL(text);
    return url.protocol === "http:" || url.protocol === "https:" ? url : null;
  } catch {
    return null;
  }
}

export function debounce(wait, action) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), wait);
  };
}
