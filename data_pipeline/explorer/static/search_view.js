// The search view: the query, the filters beside, the results, and their export.

import * as api from "./api.js";
import { arrowKeys, card } from "./cards.js";
import { errorBox, h, number } from "./elements.js";
import { filterPanel } from "./filters.js";
import { change, state, toRequest } from "./state.js";

const PAGE = 40;
let info, parts, asking, next;

export function showSearch(main, given) {
  info = given;
  parts = {
    input: h("input", { type: "search", name: "text", maxLength: 1000, autocomplete: "off", "aria-label": "Search for",
      placeholder: info.towers.length ? "Search for… (press / to come here)" : "Text search is off on this server",
      disabled: !info.towers.length }),
    terms: h("div", { className: "terms", "aria-label": "What is searched for" }),
    status: h("p", { role: "status", id: "count" }),
    filters: h("aside", { className: "filters", "aria-label": "Filters" }),
    toggle: h("button", { type: "button", className: "filter-toggle", "aria-expanded": "false", onclick: toggleFilters }),
    grid: arrowKeys(h("ul", { className: "grid", "aria-label": "Results" })),
    foot: h("div", {}),
  };
  main.replaceChildren(
    h("form", { className: "search", role: "search", onsubmit: submit },
      h("div", { className: "bar" }, parts.input,
        h("button", { className: "primary", type: "submit" }, "Search"),
        h("label", { className: "upload" }, "Image…",
          h("input", { type: "file", accept: "image/*", disabled: !info.towers.length, "aria-label": "Search by an image of yours", onchange: upload }))),
      parts.terms, options()),
    h("div", { className: "columns" }, parts.filters,
      h("section", { "aria-label": "Results" },
        h("div", { className: "status" }, parts.status, h("div", { className: "tools" }, parts.toggle, exporter())),
        parts.grid, parts.foot)));
  refresh();
}

function options() {
  const checkbox = (label, checked, onchange) => h("label", {}, h("input", { type: "checkbox", checked, onchange }), label);
  const limit = (key, label) => h("label", { className: "number" }, label,
    h("input", { type: "number", min: -1, max: 1, step: 0.01, value: state[key] ?? "",
      onchange: (event) => change({ [key]: event.target.value === "" ? null : Number(event.target.value) }) }));
  return h("div", { className: "options" },
    info.modalities.includes("text")
      ? h("label", {}, "Search over", h("select", { onchange: (event) => change({ modality: event.target.value }) },
        h("option", { value: "image", selected: state.modality === "image" }, "images"),
        h("option", { value: "text", selected: state.modality === "text" }, "captions"))) : null,
    checkbox("Fold near-duplicates", state.fold, (event) => change({ fold: event.target.checked })),
    info.hides_violence ? checkbox("Hide violence", state.hideViolence, (event) => change({ hideViolence: event.target.checked })) : null,
    h("span", { className: "between" }, limit("min", "Similarity from"), limit("max", "to")));
}

function submit(event) {
  event.preventDefault();
  const text = parts.input.value.trim();
  const others = state.terms.filter((term) => term.text === undefined);
  change({ terms: text ? [{ text, weight: 1 }, ...others] : others });
}

async function upload(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  if (file.size > info.limits.upload_bytes) {
    parts.grid.replaceChildren();
    parts.foot.replaceChildren(errorBox(new Error(
      `${file.name} has ${number(file.size)} bytes; this server takes ${number(info.limits.upload_bytes)} at most.`)));
    return;
  }
  parts.status.textContent = "Reading the image…";
  try {
    const embedding = await api.embedImage(file);
    change({ terms: [{ embedding, weight: 1, label: file.name.slice(0, 60) }] });
  } catch (error) {
    parts.grid.replaceChildren();
    parts.foot.replaceChildren(errorBox(error));
  }
}

function exporter() {
  const format = h("select", { "aria-label": "Format of the export" },
    [["parquet", "parquet"], ["csv", "CSV"], ["jsonl", "JSON lines"], ["npy", "uids (npy)"]].map(([value, label]) =>
      h("option", { value }, label)));
  const button = h("button", { type: "button", id: "export", onclick: async () => {
    button.disabled = true;
    try {
      const rows = await api.exportFile(toRequest({ format: format.value }));
      parts.status.textContent = `${number(rows)} rows exported.`;
    } catch (error) {
      parts.foot.replaceChildren(errorBox(error));
    } finally { button.disabled = false; }
  } }, "Export");
  return [format, button];
}

function toggleFilters() {
  const shown = parts.filters.classList.toggle("shown");
  parts.toggle.setAttribute("aria-expanded", String(shown));
}

export function refresh() {
  const text = state.terms.find((term) => term.text !== undefined);
  if (document.activeElement !== parts.input) parts.input.value = text?.text ?? "";
  parts.terms.replaceChildren(...state.terms.filter((term) => term.text === undefined).map(chip));
  parts.toggle.textContent = state.filters.length ? `Filters (${state.filters.length})` : "Filters";
  asking?.abort();
  asking = new AbortController();
  next = 0;
  loadFacets(asking.signal);
  loadMore(asking.signal, true);
}

function chip(term) {
  const what = term.embedding ? "image" : term.by;
  const sign = term.weight < 0 ? "unlike" : "like";
  return h("span", { className: term.weight < 0 ? "term minus" : "term" },
    term.uid && term.by === "image" ? h("img", { src: api.picture(term.uid, 128), alt: "" }) : null,
    h("span", {}, `${sign} this ${what}${term.label ? `: ${term.label}` : ""}`),
    h("button", { type: "button", "aria-label": `Remove ${sign} this ${what}`,
      onclick: () => change({ terms: state.terms.filter((each) => each !== term) }) }, "✕"));
}

async function loadFacets(signal) {
  try {
    const found = await api.facets(state.filters, signal);
    const focused = document.activeElement?.closest?.(".filters") ? focusedPlace() : null;
    const clear = state.filters.length
      ? h("button", { type: "button", onclick: () => change({ filters: [] }) }, "Clear all filters") : null;
    parts.filters.replaceChildren(...[clear, ...filterPanel(found.facets, info.recipes)].filter(Boolean));
    focused?.();
  } catch (error) {
    if (error.name !== "AbortError") parts.filters.replaceChildren(errorBox(error));
  }
}

// The sidebar is made anew after each choice; the keyboard stays where it was.
function focusedPlace() {
  const active = document.activeElement;
  const column = active.closest("details")?.dataset.column;
  const value = active.dataset.value, label = active.getAttribute("aria-label");
  return () => {
    const group = parts.filters.querySelector(`details[data-column="${CSS.escape(column ?? "")}"]`);
    const inputs = [...(group?.querySelectorAll("input, summary") ?? [])];
    (inputs.find((each) => value !== undefined ? each.dataset.value === value : each.getAttribute("aria-label") === label) ?? inputs[0])?.focus();
  };
}

async function loadMore(signal, fresh) {
  if (fresh) parts.status.textContent = "Searching…";
  try {
    const found = await api.search(toRequest({ limit: PAGE, cursor: next }), signal);
    if (fresh) parts.grid.replaceChildren();
    parts.grid.append(...found.results.map(card));
    next = found.next;
    const shown = parts.grid.children.length;
    const all = state.filters.length ? `${number(found.matching)} pass the filters` : `${number(found.matching)} pairs in all`;
    parts.status.textContent = shown ? `${number(shown)} results shown; ${all}.` : "Nothing found.";
    parts.foot.replaceChildren(foot(found, shown, signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    if (fresh) parts.grid.replaceChildren();
    parts.status.textContent = "";
    parts.foot.replaceChildren(errorBox(error, () => loadMore(signal, fresh)));
  }
}

function foot(found, shown, signal) {
  if (!shown) {
    return h("div", { className: "empty" },
      h("p", {}, "No pair fits. Remove a filter, lower the similarity, or search for something else."),
      state.filters.length ? h("button", { type: "button", onclick: () => change({ filters: [] }) }, "Clear all filters") : null);
  }
  if (next === null) return h("p", { className: "quiet" }, found.cut ? "This server goes no deeper into one search; filter to see others." : "That is all.");
  const button = h("button", { type: "button", onclick: () => { watcher.disconnect(); loadMore(signal, false); } }, "More results");
  const watcher = new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) button.click(); },
    { rootMargin: "300px" });
  watcher.observe(button);
  return button;
}

export const focusSearch = () => parts?.input.focus();
