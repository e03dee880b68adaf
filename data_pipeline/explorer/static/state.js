// What is asked for, kept in the page's address, so that an address can be shared and Back works.

const DEFAULTS = {
  view: "search", terms: [], filters: [], modality: "image", fold: true, hideViolence: false,
  min: null, max: null, sample: null, a: null, b: null,
};

export const state = structuredClone(DEFAULTS);
const listeners = new Set();

export function onChange(listener) { listeners.add(listener); }

// Changes some of it. `replace` leaves no entry for Back: for what is no step of its own.
export function change(values, { replace = false } = {}) {
  Object.assign(state, values);
  const address = toAddress();
  if (replace) history.replaceState(null, "", address);
  else if (address !== location.pathname + location.search) history.pushState(null, "", address);
  for (const listener of listeners) listener(Object.keys(values));
}

export function readAddress() {
  Object.assign(state, structuredClone(DEFAULTS));
  const given = new URLSearchParams(location.search);
  const text = (key) => given.get(key);
  if (["search", "funnel", "compare"].includes(text("view"))) state.view = text("view");
  state.terms = parsed(text("q"), []).map(toTerm).filter(Boolean);
  state.filters = parsed(text("f"), []).filter((each) => each && typeof each.column === "string");
  if (text("over") === "text") state.modality = "text";
  state.fold = text("fold") !== "0";
  state.hideViolence = text("violence") === "0";
  state.min = toNumber(text("min"));
  state.max = toNumber(text("max"));
  state.sample = /^[0-9a-f]{32}$/.test(text("sample") ?? "") ? text("sample") : null;
  state.a = text("a");
  state.b = text("b");
}

function toAddress() {
  const given = new URLSearchParams();
  if (state.view !== "search") given.set("view", state.view);
  if (state.terms.length) given.set("q", JSON.stringify(state.terms.map(fromTerm)));
  if (state.filters.length) given.set("f", JSON.stringify(state.filters));
  if (state.modality !== "image") given.set("over", state.modality);
  if (!state.fold) given.set("fold", "0");
  if (state.hideViolence) given.set("violence", "0");
  for (const key of ["min", "max", "sample", "a", "b"]) if (state[key] !== null) given.set(key, state[key]);
  const asked = given.toString();
  return location.pathname + (asked ? `?${asked}` : "");
}

// A term in an address: a text as it is, an embedding of an upload as one byte a dimension in base64.
function fromTerm(term) {
  return term.embedding ? { ...term, embedding: pack(term.embedding) } : term;
}

function toTerm(term) {
  if (!term || typeof term !== "object") return null;
  try {
    return typeof term.embedding === "string" ? { ...term, embedding: unpack(term.embedding) } : term;
  } catch { return null; }
}

function pack(values) {
  const scale = Math.max(...values.map(Math.abs)) || 1;
  return btoa(String.fromCharCode(...values.map((value) => Math.round(127 * value / scale) + 128)));
}

function unpack(text) {
  return [...atob(text)].map((letter) => (letter.charCodeAt(0) - 128) / 127);
}

function parsed(text, otherwise) {
  try {
    const value = JSON.parse(text);
    return Array.isArray(value) ? value : otherwise;
  } catch { return otherwise; }
}

function toNumber(text) {
  const value = text === null || text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : null;
}

// The request that the state stands for.
export function toRequest(extra = {}) {
  const { filters, modality, fold } = state;
  const query = state.terms.map(({ text, uid, by, embedding, weight }) =>
    Object.fromEntries(Object.entries({ text, uid, by, embedding, weight }).filter(([, value]) => value !== undefined)));
  return {
    query, filters, modality, fold, hide_violence: state.hideViolence,
    min_similarity: state.min, max_similarity: state.max, ...extra,
  };
}
