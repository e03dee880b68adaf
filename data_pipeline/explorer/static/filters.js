// The sidebar: a group for each column, with counts of what the other filters leave.

import { fixed, h, number, svg, words } from "./elements.js";
import { change, state } from "./state.js";

const FIRST = ["language", "language_bucket", "clip_score", "short_side", "aspect_ratio", "aesthetic", "punsafe",
  "pwatermark", "domain", "license", "crawl_month"];
const opened = new Set(["language", "clip_score"]);
const labelOf = (name) => name === "text" ? "caption"
  : name.startsWith("decision_") ? `recipe ${name.slice(9)}` : words(name);

export function filterPanel(facets, recipes) {
  const own = recipes.length ? `decision_${recipes[0]}` : null;
  const order = [own, ...FIRST].filter(Boolean);
  const rank = (facet) => { const place = order.indexOf(facet.column); return place < 0 ? order.length : place; };
  if (own) opened.add(own);
  const sorted = [...facets].sort((one, other) => rank(one) - rank(other));
  return [textFilter(), ...sorted.map((facet) => facet.kind === "categories" ? categories(facet) : histogram(facet))];
}

const of = (column) => state.filters.find((each) => each.column === column);

function put(column, filter) {
  const others = state.filters.filter((each) => each.column !== column);
  change({ filters: filter ? [...others, { column, ...filter }] : others });
}

function group(column, active, ...children) {
  return h("details", {
    open: opened.has(column) || Boolean(active), "data-column": column,
    ontoggle: (event) => event.target.open ? opened.add(column) : opened.delete(column),
  }, h("summary", {}, labelOf(column), active ? h("em", {}, " ●") : null), ...children);
}

function textFilter() {
  const filter = of("text");
  return group("text", filter,
    h("label", { className: "quiet" }, "Caption contains",
      h("input", { type: "search", value: filter?.contains ?? "", maxLength: 200, "aria-label": "Caption contains",
        onchange: (event) => put("text", event.target.value ? { contains: event.target.value } : null) })));
}

function categories(facet) {
  const filter = of(facet.column);
  const chosen = new Set(filter?.any_of ?? []);
  // A value that was chosen stays in sight when nothing of it is left.
  const listed = [...facet.values];
  for (const value of chosen) if (value !== null && !listed.some((each) => each.value === value)) listed.push({ value, count: 0 });
  if (facet.missing || chosen.has(null)) listed.push({ value: null, count: facet.missing });
  const toggle = (value, on) => {
    if (on) chosen.add(value); else chosen.delete(value);
    put(facet.column, chosen.size ? { any_of: [...chosen] } : null);
  };
  return group(facet.column, filter,
    filter?.none_of ? h("p", { className: "quiet" }, `Not ${filter.none_of.join(", ")} `,
      h("button", { type: "button", onclick: () => put(facet.column, null) }, "clear")) : null,
    h("ul", {}, listed.map(({ value, count }) => h("li", {},
      h("label", {},
        h("input", { type: "checkbox", checked: chosen.has(value), "data-value": value ?? "",
          onchange: (event) => toggle(value, event.target.checked) }),
        h("span", { dir: "auto" }, value ?? "no value"), h("b", {}, number(count)))))),
    facet.others ? h("p", { className: "quiet" }, `${number(facet.others)} with other values`) : null);
}

function histogram(facet) {
  const filter = of(facet.column);
  const most = Math.max(...facet.counts, 1);
  const width = 100 / facet.counts.length;
  const low = facet.edges[0], high = facet.edges.at(-1);
  const bars = facet.counts.map((count, place) => {
    const [from, to] = [facet.edges[place], facet.edges[place + 1]];
    const out = filter && (to < (filter.min ?? -Infinity) || from > (filter.max ?? Infinity));
    const height = count ? Math.max(2, 44 * count / most) : 0;
    return svg("rect", { x: place * width, y: 44 - height, width: width * 0.88, height, class: out ? "out" : "" });
  });
  const set = (key, text) => {
    const range = { ...(filter ?? {}), [key]: text === "" ? null : Number(text) };
    put(facet.column, range.min == null && range.max == null ? null : { min: range.min ?? null, max: range.max ?? null });
  };
  const field = (key, label, placeholder) => h("label", {}, label,
    h("input", { type: "number", step: "any", value: filter?.[key] ?? "", placeholder: fixed(placeholder, 3),
      "aria-label": `${labelOf(facet.column)}, ${label}`, onchange: (event) => set(key, event.target.value) }));
  const total = facet.counts.reduce((sum, count) => sum + count, 0);
  return group(facet.column, filter,
    svg("svg", { viewBox: "0 0 100 44", preserveAspectRatio: "none", role: "img",
      "aria-label": `Histogram of ${labelOf(facet.column)}: ${number(total)} values from ${fixed(low)} to ${fixed(high)}` }, ...bars),
    h("div", { className: "range" }, field("min", "from", low), field("max", "to", high)),
    facet.missing ? h("p", { className: "quiet" }, `${number(facet.missing)} without a value`) : null);
}
