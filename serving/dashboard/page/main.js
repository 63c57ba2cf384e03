// The page as a whole: signing in, the connection, which pool is shown, and who is told when something comes.

import { forget, keep, keyOf, listen, needsKey } from "./api.js";
import { placeCharts, showCharts } from "./charts.js";
import { placeControls, showControls } from "./controls.js";
import { loadDecisions, placeDecisions, stopDecisions } from "./decisions.js";
import { byId, h } from "./dom.js";
import { clock } from "./format.js";
import { showBudgets, showEvents } from "./lists.js";
import { loadMatrix, placeMatrix, stopMatrix } from "./matrix.js";
import { State } from "./state.js";
import { showTiles } from "./tiles.js";

const THEME = "pointsman-theme";
const state = new State();
let connection = null;
let pool = null;

const range = () => document.querySelector("input[name=range]:checked").value;

function place() {
  placeCharts();
  placeControls(state);
  placeMatrix(state);
  placeDecisions(state);
  byId("range").addEventListener("change", () => state.figures && showCharts(state, range()));
  byId("pool").addEventListener("change", (event) => connect(event.target.value));
  byId("sign-in").addEventListener("submit", signIn);
  byId("sign-out").addEventListener("click", () => {
    forget();
    askForKey("");
  });
  const theme = byId("theme");
  theme.value = localStorage.getItem(THEME) ?? "auto";
  theme.addEventListener("change", () => {
    localStorage.setItem(THEME, theme.value);
    paint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  paint();
}

function paint() {
  document.documentElement.dataset.theme = byId("theme").value;
  if (state.figures) showAll();
}

function askForKey(problem) {
  connection?.abort();
  stop();
  byId("board").hidden = true;
  byId("sign-out").hidden = true;
  byId("pool-field").hidden = true;
  byId("sign-in").hidden = false;
  byId("sign-in-problem").textContent = problem;
  link("out", "Signed out");
  byId("key").focus();
}

function signIn(event) {
  event.preventDefault();
  keep(byId("key").value.trim());
  byId("key").value = "";
  byId("sign-in").hidden = true;
  connect(null);
}

function stop() {
  stopMatrix();
  stopDecisions();
}

/** Listen to a pool from now on; null: the first. */
function connect(name) {
  connection?.abort();
  stop();
  connection = new AbortController();
  pool = name;
  link("loading", "Connecting");
  listen(pool, connection.signal, { event: tell, lost, refused });
}

function tell(name, data) {
  if (name === "snapshot") {
    state.snapshot(data);
    begin();
  } else if (name === "tick") state.tick(data);
  showAll();
  byId("board").dataset.stale = "false";
  byId("banner").hidden = true;
  link("live", "Live");
}

function begin() {
  const { pools, pool: shown } = state.figures;
  pool = shown.name;
  byId("pool").replaceChildren(...pools.map((name) => h("option", { value: name, selected: name === pool }, name)));
  byId("pool-field").hidden = false;
  byId("board").hidden = false;
  byId("sign-out").hidden = !needsKey;
  byId("sign-in").hidden = true;
  document.title = `${pool} · Pointsman`;
  byId("example").textContent = [
    `curl ${location.origin}/v1/chat/completions \\`,
    "  -H 'content-type: application/json' \\",
    ...(needsKey ? ["  -H 'authorization: Bearer YOUR-KEY' \\"] : []),
    `  -d '{"model": ${JSON.stringify(pool)}, "messages": [{"role": "user", "content": "Hello!"}]}'`,
  ].join("\n");
  stop();
  loadMatrix(state);
  loadDecisions();
}

function showAll() {
  byId("empty").hidden = state.busy;
  showTiles(state);
  showCharts(state, range());
  showControls();
  showEvents(state);
  showBudgets(state);
}

function lost() {
  link("lost", "Disconnected");
  if (!state.figures) return;
  byId("board").dataset.stale = "true";
  byId("banner").textContent =
    `The connection is lost. The figures are those of ${clock(state.figures.now)}; they go on by themselves once the service answers.`;
  byId("banner").hidden = false;
  stopMatrix();
}

function refused(error) {
  if (error.status === 404 && pool !== null)
    connect(null); // the pool is no more
  else if (needsKey) {
    forget();
    askForKey(error.status === 403 ? "This key is not the admin key." : "This key is not known here.");
  } else link("lost", error.message);
}

function link(name, text) {
  const shown = byId("link");
  if (shown.dataset.state === name) return;
  shown.dataset.state = name;
  byId("link-text").textContent = text;
}

place();
if (needsKey && !keyOf()) askForKey("");
else connect(null);
