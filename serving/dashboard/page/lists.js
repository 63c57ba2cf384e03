// The time line and the budgets.

import { byId, fill, h } from "./dom.js";
import { count, day, moment, percent, usd } from "./format.js";

const TONES = { filtered: "bad", probing: "warn", admitted: "good", open: "bad", closed: "good" };

export function showEvents(state) {
  const { now } = state.figures;
  const entries = state.events.map((event) => {
    const tone = TONES[event.to_state ?? event.to] ?? "";
    const who = [event.model, event.by && `by ${event.by}`].filter(Boolean).join(" · ");
    return h(
      "li",
      {},
      h("time", { datetime: new Date(1000 * event.ts).toISOString() }, moment(event.ts, now)),
      h("span", { class: `badge ${tone}` }, event.kind),
      h("div", {}, h("b", {}, event.title), who ? ` ${who}` : "", event.detail ? h("small", {}, event.detail) : null),
    );
  });
  fill(
    byId("events"),
    ...(entries.length
      ? entries
      : [
          h(
            "li",
            { class: "nothing" },
            "Nothing has happened yet: filters, canaries, breakers and changes will show here.",
          ),
        ]),
  );
}

export function showBudgets(state) {
  const { budgets, pool, recent, usd_per_request: perCall } = state.figures;
  const parts = [];
  if (perCall !== null) {
    const mean = recent.attempts ? recent.cost_usd / recent.attempts : null;
    parts.push(
      bar(`Pool ${pool.name}, mean cost of a call`, mean, perCall, `${usd(mean)} of ${usd(perCall)}, last minute`),
    );
  }
  for (const budget of budgets) {
    const amount = (value) => (budget.unit === "usd" ? usd(value) : `${count(value)} tokens`);
    for (const counter of budget.counters) {
      const who = counter.member ?? (budget.scope === "all" ? "everybody" : budget.match);
      const until = counter.resets_at === null ? "" : `, anew ${day(counter.resets_at)}`;
      const text = `${amount(counter.spent)} of ${amount(budget.limit)} a ${budget.per}, ${budget.kind}${until}`;
      parts.push(
        bar(
          `${budget.scope === "all" ? "" : `${budget.scope} `}${who}`,
          counter.spent,
          budget.limit,
          text,
          budget.warn_at,
        ),
      );
    }
    if (!budget.counters.length) parts.push(h("p", { class: "nothing" }, `${budget.name}: nothing spent yet.`));
    if (budget.counters_left_out)
      parts.push(h("p", { class: "nothing" }, `${count(budget.counters_left_out)} more of ${budget.name}.`));
  }
  fill(
    byId("budgets"),
    ...(parts.length ? parts : [h("p", { class: "nothing" }, "No budget is set: see budgets in the configuration.")]),
  );
}

function bar(name, spent, limit, text, warnAt = 0.8) {
  const share = spent === null ? 0 : spent / limit;
  const tone = share >= 1 ? "bad" : share >= warnAt ? "warn" : "";
  return h(
    "div",
    { class: "budget" },
    h("div", { class: "row" }, h("b", {}, name), h("span", {}, spent === null ? "–" : percent(share, 0))),
    h("span", { class: `bar wide ${tone}`, "aria-hidden": "true" }, h("i", { "width%": 100 * share })),
    h("p", { class: "note" }, text),
  );
}
