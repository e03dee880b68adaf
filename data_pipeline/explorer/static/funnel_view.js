// The funnel: rows in and out of every stage by reason, and what each rule of a recipe dropped.

import * as api from "./api.js";
import { errorBox, h, number } from "./elements.js";

export async function showFunnel(main) {
  main.replaceChildren(h("p", { className: "empty" }, "Loading…"));
  try {
    const runs = await api.funnel();
    main.replaceChildren(h("div", { className: "page" }, runs.flatMap(run)));
  } catch (error) {
    main.replaceChildren(errorBox(error, () => showFunnel(main)));
  }
}

function run(found) {
  const most = Math.max(...found.stages.map((stage) => stage.rows_in), 1);
  return [
    h("h2", {}, `Run ${found.run}`),
    h("section", { className: "panel" }, h("h3", {}, "Stages"),
      found.stages.length ? table(["stage", "rows in", "rows out", "", "seconds", "dropped for"], found.stages.map((stage) => [
        stage.stage, number(stage.rows_in), number(stage.rows_out), bar(stage.rows_out, most, `${stage.stage}: ${number(stage.rows_out)} rows out`),
        stage.seconds.toFixed(1),
        Object.entries(stage.dropped).map(([reason, count]) => `${reason}: ${number(count)}`).join(", ") || "–",
      ])) : h("p", {}, "This run has no funnel yet.")),
    ...found.recipes.map(recipe),
  ];
}

function recipe(found) {
  return h("section", { className: "panel" },
    h("h3", {}, `Recipe ${found.name}, version ${found.version}: ${number(found.rows_out)} of ${number(found.rows_in)} kept`),
    h("p", { className: "quiet" }, found.source),
    table(["reason", "rule", "dropped", "left", ""], found.rules.map((rule) => [
      rule.reason, h("code", {}, found.conditions[rule.reason] ?? "a fraction, or a value that is missing"),
      number(rule.dropped), number(rule.left), bar(rule.left, found.rows_in, `after ${rule.reason}: ${number(rule.left)} left`),
    ])));
}

const bar = (value, most, label) => h("meter", { min: 0, max: Math.max(most, 1), value, "aria-label": label });

function table(heads, rows) {
  const numeric = (cell) => typeof cell === "string" && /^[\d,.]+$/.test(cell);
  return h("table", {},
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", { className: numeric(cell) ? "number" : "" }, cell))))));
}
