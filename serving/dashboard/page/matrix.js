// The accuracy matrix: each model in all and by category, as `/admin/matrix` has it from the log.

import { ask } from "./api.js";
import { byId, fill, h, table } from "./dom.js";
import { clock, count, grade, interval, seconds, usd } from "./format.js";

const EVERY_MS = 15000;
const TIMES_ITS_OWN = 10; // reading the log of a busy service takes its time: never more than a tenth of it

let timer = null;
let asked = 0;

export function placeMatrix(state) {
  byId("reload-matrix").addEventListener("click", () => loadMatrix(state));
  byId("days").addEventListener("change", () => loadMatrix(state));
}

export function stopMatrix() {
  clearTimeout(timer);
}

/** Ask for it now, and then again and again. */
export async function loadMatrix(state) {
  clearTimeout(timer);
  const turn = ++asked;
  const { pool, limits } = state.figures;
  const note = byId("matrix-note");
  if (!note.textContent) note.textContent = "Reading the log…";
  const began = performance.now();
  let wait = EVERY_MS;
  try {
    const matrix = await ask("GET", `/admin/matrix?pool=${encodeURIComponent(pool.name)}&days=${byId("days").value}`);
    if (turn !== asked) return;
    show(matrix, limits);
    const lag = matrix.log_lag_events ? ` ${count(matrix.log_lag_events)} events are not in it yet.` : "";
    const untested = matrix.untested_limits.map(({ limit, models, needs }) => {
      const who = models.length === matrix.models.length ? "any model" : models.join(", ");
      return `Nothing tests ${limit} of ${who} yet: it takes ${needs}.`;
    });
    note.textContent = [
      "Accuracy by benchmarks, or where there are none the quality of feedback, with its 95 % interval.",
      `From the log, as of ${clock(matrix.until)}.${lag}`,
      ...untested,
    ].join(" ");
    wait = Math.max(EVERY_MS, TIMES_ITS_OWN * (performance.now() - began));
  } catch (error) {
    if (turn !== asked) return;
    note.textContent = `The matrix cannot be read now: ${error.message}`;
  }
  timer = setTimeout(() => loadMatrix(state), wait);
}

function show(matrix, limits) {
  const names = [...new Set(matrix.models.flatMap((m) => m.categories.map((c) => c.category)))].sort((a, b) =>
    (a ?? "").localeCompare(b ?? ""),
  );
  const head = ["Model", "All calls", ...names.map((name) => name ?? "no category")];
  const rows = matrix.models.map((model) => {
    const state = model.pools.find((entry) => entry.pool === matrix.pool)?.state ?? "";
    const cells = names.map((name) =>
      cell(
        model.categories.find((c) => c.category === name),
        limits,
      ),
    );
    return {
      props: { "data-model": model.model },
      cells: [[{}, model.model, h("small", {}, state)], cell(model.overall, limits), ...cells],
    };
  });
  fill(byId("matrix"), ...table("Accuracy, latency, cost and samples by model and category", head, rows));
}

function cell(figures, limits) {
  if (!figures || !(figures.calls || figures.benchmark_calls || figures.quality.samples))
    return [{ class: "soft" }, "–"];
  const tested = figures.accuracy.samples > 0;
  const share = tested ? figures.accuracy : figures.quality;
  const low = limits.min_accuracy !== null && share.high !== null && share.high < limits.min_accuracy;
  const latency = figures.calls ? figures.latency_s : figures.benchmark_latency_s;
  const cost = figures.calls ? figures.cost_usd_per_call : figures.benchmark_cost_usd_per_call;
  return [
    { class: low ? "low" : null },
    h("span", { class: "grade" }, grade(share.mean, 2)),
    ` ${interval(share)}`,
    h("small", {}, `p95 ${seconds(latency.p95)} · ${usd(cost.mean === null ? null : 1000 * cost.mean)}/1k`),
    h(
      "small",
      {},
      `${count(share.samples)} ${tested ? "benchmark answers" : "graded"}, `,
      h("data", { value: figures.calls, "data-figure": "calls" }, count(figures.calls)),
      " calls",
    ),
  ];
}
