// Elements from names, properties and children. Text is always set as text, so nothing in a caption becomes markup.

export function h(name, properties = {}, ...children) {
  const element = document.createElement(name);
  apply(element, properties);
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function apply(element, properties) {
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element && key !== "list" && key !== "form") element[key] = value;
    else element.setAttribute(key, value);
  }
}

export const number = (value) => value.toLocaleString("en");

export function fixed(value, digits = 3) {
  return typeof value === "number" ? value.toFixed(digits) : String(value);
}

// A column's name as words: clip_score -> clip score.
export const words = (name) => name.replaceAll("_", " ");

export function errorBox(error, retry) {
  return h("div", { className: "error", role: "alert" },
    h("p", {}, error.message),
    retry ? h("button", { type: "button", onclick: retry }, "Try again") : null);
}

// A web address that may be followed; captions and pages of the crawl hold anything.
export function isWebAddress(address) {
  return typeof address === "string" && /^https?:\/\//i.test(address);
}
