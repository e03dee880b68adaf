// All about one pair, in a dialog: why it was kept or dropped, where it came from, what the taggers say, what is like it.

import * as api from "./api.js";
import { pivotTerm, thumbnail } from "./cards.js";
import { errorBox, fixed, h, isWebAddress, words } from "./elements.js";
import { change, state } from "./state.js";

const dialog = document.getElementById("detail");
let shown = null;

dialog.addEventListener("close", () => { if (state.sample) change({ sample: null }); });
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

export async function refreshDetail() {
  if (state.sample === shown) return;
  shown = state.sample;
  if (!shown) { dialog.close(); return; }
  const uid = shown;
  dialog.replaceChildren(h("div", { className: "detail" }, h("div", { className: "top" }, h("h2", { id: "detail-title" }, "Loading…"), closeButton())));
  if (!dialog.open) dialog.showModal();
  try {
    const found = await api.sample(uid);
    if (shown === uid) dialog.replaceChildren(page(found));
  } catch (error) {
    dialog.replaceChildren(h("div", { className: "detail" },
      h("div", { className: "top" }, h("h2", { id: "detail-title" }, "Not to be shown"), closeButton()), errorBox(error)));
  }
}

const closeButton = () => h("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕");

function page(found) {
  const pivot = (by) => change({ sample: null, view: "search", terms: [pivotTerm(found, by)] });
  return h("div", { className: "detail" },
    h("div", { className: "top" }, h("h2", { id: "detail-title", dir: "auto" }, found.text), closeButton()),
    h("div", {},
      h("img", { className: "picture", src: api.picture(found.uid, 512), alt: found.showing === "show" ? found.text : `blurred image: ${found.text}` }),
      h("p", { className: "terms" },
        h("button", { type: "button", className: "primary", onclick: () => pivot("image") }, "More like this image"),
        h("button", { type: "button", onclick: () => pivot("caption") }, "More like this caption")),
      found.url ? h("p", {}, address(found.url)) : h("p", { className: "quiet" }, "This server does not tell the address of this image."),
      nearDuplicates(found)),
    h("div", {}, ...found.decisions.map(decision),
      found.decisions.length ? null : h("p", { className: "quiet" }, "No recipe has judged this pair."),
      h("h3", {}, "Where it came from"), table(found.provenance),
      ...Object.entries(found.tags).flatMap(([name, columns]) => [h("h3", {}, `Tags: ${words(name)}`), table(columns)]),
      h("h3", {}, "The file"), table({ uid: found.uid, run: found.run, shard: found.shard, ...found.download })));
}

function decision(found) {
  const verdict = found.kept
    ? h("span", { className: "kept" }, "✓ kept") : h("span", { className: "dropped" }, `✗ dropped: ${found.reason}`);
  const marks = { passed: "✓", failed: "✗", "not looked at": "–" };
  return h("section", { className: "why" },
    h("h3", {}, `Recipe ${found.recipe} (version ${found.version}): `, verdict),
    h("ol", { className: "rules" }, found.rules.map((rule) =>
      h("li", { className: { failed: "dropped", "not looked at": "later" }[rule.outcome] ?? "" },
        `${marks[rule.outcome]} ${rule.reason} `, h("span", { className: "quiet" }, `(${rule.outcome})`), h("br"),
        h("code", {}, rule.condition),
        Object.keys(rule.values).length
          ? h("span", { className: "quiet" }, ` with ${Object.entries(rule.values).map(([name, value]) => `${name} = ${show(value)}`).join(", ")}`) : null))));
}

function nearDuplicates(found) {
  if (!found.near_duplicates.length) return h("p", { className: "quiet" }, "No near-duplicates.");
  return h("section", {}, h("h3", {}, `Near-duplicates (${found.near_duplicates.length})`),
    h("div", { className: "near" }, found.near_duplicates.map((other) =>
      h("button", { type: "button", title: `${fixed(other.similarity)}: ${other.text}`, onclick: () => change({ sample: other.uid }) },
        thumbnail(other, 128)))));
}

function table(values) {
  const rows = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  if (!rows.length) return h("p", { className: "quiet" }, "Nothing is known.");
  return h("table", {}, h("tbody", {}, rows.map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row" }, words(name)), h("td", { dir: "auto" }, isWebAddress(value) ? address(value) : show(value))))));
}

const show = (value) => typeof value === "number" && !Number.isInteger(value) ? fixed(value, 4) : Array.isArray(value) ? value.join(", ") : String(value);

function address(value) {
  return isWebAddress(value) ? h("a", { href: value, rel: "noreferrer noopener nofollow", target: "_blank" }, value) : value;
}
