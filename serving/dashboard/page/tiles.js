// The row of figures that says within seconds how the pool is doing.

import { byId, fill, h } from "./dom.js";
import { count, day, grade, interval, percent, seconds, usd } from "./format.js";

/** A figure; `exact` is the number itself, for whoever reads the page by program. */
const value = (text, exact, what) => h("data", { class: "value", value: exact ?? "", "data-figure": what }, text);

function tile(title, shown, more, tone) {
  return h(
    "li",
    { class: "tile", "data-tone": tone },
    h("h3", {}, title),
    h("p", {}, shown),
    h("p", { class: "more" }, more),
  );
}

export function showTiles(state) {
  const { total, everything, recent, alone, limits, pool, since } = state.figures;
  const named = everything.calls - total.calls;
  const perMinute = usd(recent.cost_usd);
  fill(
    byId("tiles"),
    tile(
      "Calls",
      value(count(total.calls), total.calls, "calls"),
      `${count(recent.attempts)} attempts in the last minute`,
    ),
    tile("Cost", value(usd(total.cost_usd), total.cost_usd, "cost_usd"), `${perMinute} in the last minute`),
    saving(alone, total),
    quality(recent, total, limits),
    latency(recent, limits),
    errors(recent, total, limits),
  );
  const others = named ? ` Another ${count(named)} calls named a model themselves or went to other pools.` : "";
  byId("foot").textContent = since
    ? `Totals of pool ${pool.name} count every call since ${day(since)}, shadows included; they are those of /admin/usage.${others}` +
      " The best single model is the one, not filtered now, that was predicted the most quality on the same calls; the saving" +
      " is what it was predicted to cost on them, less what they cost. Quantiles of latency are within 2 %."
    : "";
}

function saving(alone, total) {
  const { best, saved_usd: saved, answered } = alone;
  if (best === null || !answered) return tile("Saved", value("–", null, "saved_usd"), "against the best single model");
  const own = alone.models[best];
  const share = own.cost_usd ? saved / own.cost_usd : null;
  const mean = total.quality ? `, quality ${grade(own.quality, 2)} to our ${grade(total.quality[0], 2)}` : "";
  const text = `${share === null ? "" : `${percent(Math.abs(share), 0)} ${saved < 0 ? "more" : "less"} than `}${best} alone${mean}`;
  return tile("Saved", value(usd(saved), saved, "saved_usd"), text, saved < 0 ? undefined : "good");
}

function quality(recent, total, limits) {
  const now = recent.quality ?? total.quality;
  const low = limits.min_accuracy !== null && now && now[2] < limits.min_accuracy;
  const when = recent.quality
    ? `${interval(now)} · ${count(now[3])} graded in a minute`
    : now
      ? `${interval(now)} since the start`
      : "no feedback yet";
  return tile("Quality", value(grade(now?.[0]), now?.[0], "quality"), when, low ? "bad" : undefined);
}

function latency(recent, limits) {
  const p95 = recent.latency_s?.[1];
  const limit = limits.p95_latency_s;
  const more = limit === null ? "of the last minute, no limit" : `limit ${seconds(limit)} · last minute`;
  return tile(
    "p95 latency",
    value(seconds(p95), p95, "p95_latency_s"),
    more,
    limit !== null && p95 > limit ? "bad" : undefined,
  );
}

function errors(recent, total, limits) {
  const rate = recent.attempts ? recent.failed / recent.attempts : null;
  const limit = limits.max_error_rate;
  const more = `${count(total.failed)} of ${count(total.attempts)} attempts in all`;
  return tile("Errors", value(percent(rate), rate, "error_rate"), more, rate > (limit ?? 0.05) ? "bad" : undefined);
}
