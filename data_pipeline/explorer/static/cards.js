// A result as a card, and a list of them that is read with the arrow keys.

import { picture } from "./api.js";
import { fixed, h } from "./elements.js";
import { change, state } from "./state.js";

export const KEPT = "kept";

export function describeDecision(decision) {
  if (decision === null || decision === undefined) return null;
  return decision === KEPT
    ? h("span", { className: "kept" }, "✓ kept")
    : h("span", { className: "dropped" }, `✗ ${decision}`);
}

function altText(result) {
  return result.showing === "show" ? result.text : `blurred image: ${result.text}`;
}

export function thumbnail(result, size = 256) {
  // A picture that is gone leaves its place, and its words in the card, so that the grid does not jump.
  return h("img", {
    src: picture(result.uid, size), alt: altText(result), loading: "lazy", decoding: "async",
    onerror: (event) => event.target.classList.add("failed"),
  });
}

export function card(result) {
  const facts = [
    result.similarity === null ? null : fixed(result.similarity),
    result.language, result.short_side ? `${result.short_side} px` : null,
  ].filter(Boolean).join(" · ");
  const badge = result.showing !== "show" ? "blurred" : result.folded.length ? `+${result.folded.length} alike` : null;
  const pivot = (by, weight) => change({ terms: [...(weight < 0 ? state.terms : []), pivotTerm(result, by, weight)], view: "search" });
  return h("li", {},
    h("article", { className: "card" },
      h("button", { className: "open", type: "button", onclick: () => change({ sample: result.uid }), title: "Details" },
        thumbnail(result), badge ? h("span", { className: "badge" }, badge) : null),
      h("div", { className: "words" },
        h("p", { className: "caption", dir: "auto", title: result.text }, result.text),
        h("p", { className: "facts" }, facts, result.decision ? " · " : "", describeDecision(result.decision))),
      h("div", { className: "pivots" },
        h("button", { type: "button", title: "Search for images like this one", onclick: () => pivot("image", 1) }, "image"),
        h("button", { type: "button", title: "Search by this caption", onclick: () => pivot("caption", 1) }, "caption"),
        h("button", { type: "button", title: "Search for the same, but unlike this image", disabled: !state.terms.length,
          onclick: () => pivot("image", -0.5) }, "less"))));
}

export function pivotTerm(result, by, weight = 1) {
  return { uid: result.uid, by, weight, label: result.text.slice(0, 60) };
}

// Arrow keys go from card to card; Tab goes through what a card holds.
export function arrowKeys(grid) {
  grid.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: rowLength(grid), ArrowUp: -rowLength(grid) };
    if (!(event.key in steps) || !event.target.closest(".card")) return;
    const cards = [...grid.children];
    const next = cards[cards.indexOf(event.target.closest("li")) + steps[event.key]];
    if (!next) return;
    event.preventDefault();
    next.querySelector(".open").focus();
  });
  return grid;
}

function rowLength(grid) {
  const top = grid.firstElementChild?.offsetTop;
  const first = [...grid.children].findIndex((each) => each.offsetTop !== top);
  return first < 0 ? grid.children.length : first;
}
