// The last decisions, each of which opens to why it was made: what could be chosen, what was expected, what came.

import { ask } from "./api.js";
import { byId, h, renew, table } from "./dom.js";
import { clock, count, grade, percent, seconds, usd } from "./format.js";

const EVERY_MS = 3000;
const LIMIT = 100;
const HEAD = [
  "Time",
  "Model",
  "Mode",
  "Category",
  [{ class: "n" }, "Probability"],
  "Status",
  [{ class: "n" }, "Latency"],
  [{ class: "n" }, "Cost"],
  [{ class: "n" }, "Quality"],
];

let timer = null;
let rows = [];
let open = null; // the id of the one that is open, and what is known of it
let why = null;
let nameOfPool = () => "";

export function placeDecisions(state) {
  nameOfPool = () => state.figures.pool.name;
  byId("follow").addEventListener("change", () => byId("follow").checked && loadDecisions());
}

export function stopDecisions() {
  clearTimeout(timer);
  open = why = null;
}

export async function loadDecisions() {
  clearTimeout(timer);
  try {
    if (open === null && byId("follow").checked) {
      const pool = nameOfPool();
      const answer = await ask("GET", `/admin/decisions?limit=${LIMIT}&pool=${encodeURIComponent(pool)}`);
      if (open === null && pool === nameOfPool()) {
        rows = answer.decisions;
        show();
      }
    }
  } catch {
    // the feed says that the service is gone
  }
  timer = setTimeout(loadDecisions, EVERY_MS);
}

function show() {
  byId("decisions-note").textContent =
    open === null ? "Open one to see why its call went where it did." : "The list waits while a decision is open.";
  renew(byId("decisions"), ...table("Last decisions, newest first", HEAD, rows.map(line), "No decision yet."));
  const place = byId("decisions").querySelector(`[data-key="${open}"]`)?.closest("tr");
  place?.after(
    h(
      "tr",
      {},
      h(
        "td",
        { colspan: HEAD.length, id: "why-detail" },
        why === null ? h("p", { class: "nothing", role: "status" }, "Loading…") : explained(why),
      ),
    ),
  );
}

function line(decision) {
  const expanded = decision.decision_id === open;
  const opener = h(
    "button",
    {
      type: "button",
      class: "opener",
      "aria-expanded": String(expanded),
      "aria-controls": expanded ? "why-detail" : null,
      "data-key": decision.decision_id,
      onclick: () => toggle(decision.decision_id),
    },
    clock(decision.ts),
    h("span", { class: "sr" }, ` to ${decision.served_by}: why`),
  );
  const moved = decision.served_by === decision.chosen ? null : h("small", {}, `drawn: ${decision.chosen}`);
  return {
    cells: [
      opener,
      [{}, decision.served_by, moved],
      decision.mode,
      decision.category ?? "–",
      [{ class: "n" }, percent(decision.propensity)],
      h(
        "span",
        { class: `badge ${decision.status === "ok" ? "good" : decision.status === null ? "" : "bad"}` },
        decision.status ?? "under way",
      ),
      [{ class: "n" }, seconds(decision.latency_s)],
      [{ class: "n" }, usd(decision.cost_usd)],
      [{ class: "n" }, grade(decision.quality, 2)],
    ],
  };
}

async function toggle(id) {
  if (open === id) {
    open = why = null;
    show();
    loadDecisions();
    return;
  }
  open = id;
  why = null;
  show();
  try {
    const answer = await ask("GET", `/admin/decisions/${encodeURIComponent(id)}`);
    if (open !== id) return;
    why = answer;
  } catch (error) {
    if (open !== id) return;
    why = { error: error.message };
  }
  byId("why-detail")?.replaceChildren(explained(why));
}

function explained(decision) {
  if (decision.error) return h("p", { class: "nothing", role: "alert" }, decision.error);
  const facts = [
    ["decision", decision.decision_id],
    ["policy", decision.policy_version],
    ["call", `number ${count(decision.step)} of the pool`],
    ["input", `${count(decision.input_tokens)} tokens`],
    ["user", decision.user],
    ["team", decision.team],
    ["tier", decision.tier],
    ["experiment", decision.experiment],
    ["shadow of", decision.origin],
    ["reward", decision.reward === null ? null : grade(decision.reward)],
  ];
  return h(
    "div",
    { class: "why" },
    h("p", {}, sentence(decision)),
    h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "The models it could have gone to" },
      h("table", {}, ...choices(decision)),
    ),
    h(
      "div",
      {},
      h("h3", {}, "What came of it"),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Predicted and realised" },
        h("table", { class: "few" }, ...realised(decision)),
      ),
    ),
    decision.attempts.length > 1
      ? h(
          "div",
          {},
          h("h3", {}, "Attempts"),
          h(
            "div",
            { class: "scroll", tabindex: "0", role: "region", "aria-label": "Attempts" },
            h("table", {}, ...attempts(decision)),
          ),
        )
      : null,
    h(
      "dl",
      { class: "facts" },
      ...facts
        .filter(([, value]) => value !== null && value !== undefined)
        .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
  );
}

function sentence(decision) {
  const { mode, chosen } = decision;
  const drawn = `drawn with a probability of ${percent(decision.propensity)}`;
  const why = {
    bandit: `${chosen} was ${drawn}: the policy's belief that it is the best of ${decision.feasible} feasible models, and what exploring adds.`,
    weighted: `${chosen} was ${drawn}: by the operator's weights.`,
    canary: `${chosen} was ${drawn}, a canary's share among them.`,
    sticky: `${chosen} was kept: the conversation was on it already.`,
    pinned: `The call named ${chosen} itself.`,
    cached: "The answer came from the cache; no model was asked.",
    shadow: `A shadow's call went to ${chosen}; nobody saw its answer.`,
  };
  const limits = decision.infeasible ? " No model met the limits, so it went where they are exceeded least." : "";
  return (why[mode] ?? `${chosen} was ${drawn}.`) + limits;
}

function choices(decision) {
  const head = [
    "Model",
    [{ class: "n" }, "Probability"],
    [{ class: "n" }, "Quality expected"],
    [{ class: "n" }, "Cost expected"],
    [{ class: "n" }, "Latency expected"],
    "Feasible",
  ];
  const sorted = [...decision.models].sort((a, b) => b.probability - a.probability);
  const probe = (model) => (model.probability > 0 ? "; it still gets its probes" : "");
  return table(
    "What each model was expected to yield",
    head,
    sorted.map((model) => ({
      props: { class: model.chosen ? "chosen" : null },
      cells: [
        [{}, model.model, model.chosen ? h("small", {}, "drawn") : null],
        [
          { class: "n" },
          percent(model.probability),
          h("span", { class: "bar", "aria-hidden": "true" }, h("i", { "width%": 100 * model.probability })),
        ],
        [{ class: "n" }, grade(model.predicted.quality)],
        [{ class: "n" }, usd(model.predicted.cost_usd)],
        [{ class: "n" }, seconds(model.predicted.latency_s)],
        [
          { class: "wrap" },
          model.feasible
            ? h("span", { class: "badge good" }, "yes")
            : h("span", {}, h("span", { class: "badge bad" }, "no"), ` ${model.left_out}${probe(model)}`),
        ],
      ],
    })),
  );
}

function realised(decision) {
  const expected = decision.predicted ?? {};
  const line = (name, before, after) => ({ cells: [name, [{ class: "n" }, before], [{ class: "n" }, after]] });
  return table(
    "Predicted and realised",
    ["Figure", [{ class: "n" }, "Predicted"], [{ class: "n" }, "Realised"]],
    [
      line("Quality", grade(expected.quality), decision.quality === null ? "no feedback yet" : grade(decision.quality)),
      line("Cost", usd(expected.cost_usd), usd(decision.cost_usd)),
      line("Latency", seconds(expected.latency_s), seconds(decision.latency_s)),
    ],
  );
}

function attempts(decision) {
  const head = ["Attempt", "Model", "Endpoint", "Status", [{ class: "n" }, "Latency"], [{ class: "n" }, "Cost"]];
  const status = (a) =>
    [a.status, a.http_status, a.error].filter((part) => part !== null && part !== undefined).join(" · ");
  return table(
    "Attempts",
    head,
    decision.attempts.map((a) => ({
      cells: [
        count(a.attempt + 1),
        a.model,
        a.endpoint ?? "–",
        status(a),
        [{ class: "n" }, seconds(a.latency_s)],
        [{ class: "n" }, usd(a.cost_usd)],
      ],
    })),
  );
}
