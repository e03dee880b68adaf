// Starts the page, and shows the view that the address asks for.

import * as api from "./api.js";
import { showCompare } from "./compare_view.js";
import { refreshDetail } from "./detail_view.js";
import { errorBox, number } from "./elements.js";
import { showFunnel } from "./funnel_view.js";
import { focusSearch, refresh, showSearch } from "./search_view.js";
import { change, onChange, readAddress, state } from "./state.js";

const main = document.getElementById("main");
let info, view = null;

function show(changed) {
  const moved = view !== state.view;
  view = state.view;
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  const onlySample = !moved && changed.length === 1 && changed[0] === "sample";
  if (!onlySample) {
    if (view === "search") { if (moved) showSearch(main, info); else refresh(); }
    else if (view === "funnel") { if (moved) showFunnel(main); }
    else showCompare(main, info);
  }
  refreshDetail();
}

function notice() {
  const { safety, safety_tags: tags } = info;
  const element = document.getElementById("notice");
  if (tags.length === 0 && safety.untagged === "show") {
    element.textContent = "No safety tagger has judged these images, and this server shows such images.";
    element.hidden = false;
  }
}

for (const button of document.querySelectorAll("nav button")) {
  button.addEventListener("click", () => change({ view: button.dataset.view, sample: null }));
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    focusSearch();
  }
});

addEventListener("popstate", () => { readAddress(); view = null; show([]); });

async function start() {
  try {
    info = await api.info();
  } catch (error) {
    main.replaceChildren(errorBox(error, start));
    return;
  }
  const names = info.runs.map((run) => run.name).join(", ");
  document.getElementById("about").textContent = `${number(info.rows)} pairs of ${names}`;
  notice();
  readAddress();
  onChange(show);
  show([]);
}

start();
