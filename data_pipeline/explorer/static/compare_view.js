// Two recipes side by side: how many pairs both keep, and what is in one but not in the other.

import * as api from "./api.js";
import { arrowKeys, card, KEPT } from "./cards.js";
import { errorBox, h, number } from "./elements.js";
import { change, state } from "./state.js";

const SHOWN = 40;

export async function showCompare(main, info) {
  if (info.recipes.length < 2) {
    main.replaceChildren(h("div", { className: "empty" },
      h("p", {}, info.recipes.length ? `This run was judged by one recipe, ${info.recipes[0]}.` : "No recipe has judged this run."),
      h("p", {}, "Name others when it is indexed: ", h("code", {}, "stage=index 'index.recipes=[laion400m]'"))));
    return;
  }
  const a = info.recipes.includes(state.a) ? state.a : info.recipes[0];
  const b = info.recipes.includes(state.b) && state.b !== a ? state.b : info.recipes.find((name) => name !== a);
  const kept = (name) => ({ column: `decision_${name}`, any_of: [KEPT] });
  const not = (name) => ({ column: `decision_${name}`, none_of: [KEPT] });
  main.replaceChildren(h("p", { className: "empty" }, "Loading…"));
  try {
    const [both, onlyA, onlyB, neither] = await Promise.all([
      [kept(a), kept(b)], [kept(a), not(b)], [not(a), kept(b)], [not(a), not(b)],
    ].map((filters) => api.search({ filters, query: state.terms.map(({ label, ...term }) => term), limit: SHOWN })));
    main.replaceChildren(h("div", { className: "page" },
      h("form", { className: "choose", onsubmit: (event) => event.preventDefault() },
        choice("Recipe A", a, info.recipes, (value) => change({ a: value })),
        choice("Recipe B", b, info.recipes, (value) => change({ b: value }))),
      h("section", { className: "panel" }, h("h2", {}, "What they keep"), h("table", {}, h("tbody", {},
        [["Both", both], [`${a}, not ${b}`, onlyA], [`${b}, not ${a}`, onlyB], ["Neither", neither]].map(([label, found]) =>
          h("tr", {}, h("th", { scope: "row" }, label), h("td", { className: "number" }, number(found.matching))))))),
      h("div", { className: "pair" }, column(a, b, onlyA, [kept(a), not(b)]), column(b, a, onlyB, [kept(b), not(a)]))));
  } catch (error) {
    main.replaceChildren(errorBox(error, () => showCompare(main, info)));
  }
}

function choice(label, value, names, onchange) {
  return h("label", {}, label, h("select", { onchange: (event) => onchange(event.target.value) },
    names.map((name) => h("option", { value: name, selected: name === value }, name))));
}

function column(one, other, found, filters) {
  return h("section", { "aria-label": `In ${one}, not in ${other}` },
    h("h2", {}, `In ${one}, not in ${other}: ${number(found.matching)}`),
    found.results.length
      ? arrowKeys(h("ul", { className: "grid" }, found.results.map(card))) : h("p", { className: "empty" }, "Nothing."),
    found.matching > found.results.length
      ? h("button", { type: "button", onclick: () => change({ view: "search", filters }) }, "See all in the search") : null);
}
