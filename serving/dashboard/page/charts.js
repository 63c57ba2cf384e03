// The charts: counts over time drawn by uPlot, each with a legend of its latest values and a table of the numbers.

import { byId, fill, h, table } from "./dom.js";
import { clock, grade, percent, seconds, usd } from "./format.js";
import { colorOf } from "./state.js";

const ROWS = 15;
const EVENTS = ["filter", "canary", "breaker", "change"];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const of = (series, read) => series.map(({ bucket }) => (bucket === null ? null : (read(bucket) ?? null)));

/** The charts there are: `lines(state, series, range)` says what each draws; the first line of a stack is the topmost. */
const CHARTS = [
  {
    id: "share",
    title: "Traffic by model",
    note: "Share of the pool's calls",
    format: (v) => percent(v, 0),
    range: () => [0, 1],
    stacked: true,
    lines: (state, series) =>
      state.models.map((model, i) => ({
        label: model,
        color: colorOf(i),
        values: of(series, (b) => {
          const all = Object.values(b.routed).reduce((sum, n) => sum + n, 0);
          return all ? (b.routed[model] ?? 0) / all : null;
        }),
      })),
  },
  {
    id: "cost",
    title: "Cost per minute",
    note: "Beside it, what the best single model was predicted to cost",
    format: usd,
    lines: (state, series, range) => [
      { label: "this pool", color: color("--c0"), fill: true, values: rate(state, range, series, (b) => b.cost_usd) },
      ...best(state, (name) => rate(state, range, series, (b) => b.alone_usd[name] ?? 0)),
    ],
  },
  {
    id: "spent",
    title: "Cumulative cost",
    note: "Within the time shown; the gap is the saving",
    format: usd,
    lines: (state, series) => [
      { label: "this pool", color: color("--c0"), fill: true, values: added(series, (b) => b.cost_usd) },
      ...best(state, (name) => added(series, (b) => b.alone_usd[name] ?? 0)),
    ],
  },
  {
    id: "quality",
    title: "Quality",
    note: "Mean of the feedback, and its 95 % interval",
    format: (v) => grade(v),
    range: (low) => [Math.min(0.5, Math.floor(10 * (low ?? 0.5)) / 10), 1],
    lines: (state, series) => [
      { label: "mean", color: color("--c2"), band: true, values: of(series, (b) => b.quality?.[0]) },
      { label: "high", color: color("--c2"), faint: true, values: of(series, (b) => b.quality?.[2]) },
      { label: "low", color: color("--c2"), faint: true, values: of(series, (b) => b.quality?.[1]) },
      ...limit(state, series, "min_accuracy"),
    ],
  },
  {
    id: "latency",
    title: "Latency",
    note: "Of answered calls",
    format: seconds,
    lines: (state, series) => [
      { label: "p99", color: color("--c4"), values: of(series, (b) => b.latency_s?.[2]) },
      { label: "p95", color: color("--c1"), wide: true, values: of(series, (b) => b.latency_s?.[1]) },
      { label: "p50", color: color("--c0"), values: of(series, (b) => b.latency_s?.[0]) },
      ...limit(state, series, "p95_latency_s"),
    ],
  },
  {
    id: "errors",
    title: "Errors",
    note: "Share of attempts that failed by the model's fault",
    format: percent,
    range: (low, high) => [0, Math.max(0.05, high ?? 0)],
    lines: (state, series) => [
      {
        label: "errors",
        color: color("--c5"),
        fill: true,
        values: of(series, (b) => (b.attempts ? b.failed / b.attempts : null)),
      },
      ...limit(state, series, "max_error_rate"),
    ],
  },
];

function best(state, values) {
  const name = state.figures.alone.best;
  return name === null ? [] : [{ label: `${name} alone`, color: color("--c1"), dashed: true, values: values(name) }];
}

function limit(state, series, name) {
  const value = state.figures.limits[name];
  return value === null
    ? []
    : [{ label: "limit", color: color("--bad"), dashed: true, values: series.map(() => value) }];
}

function rate(state, range, series, read) {
  return series.map(({ t, bucket }) => (bucket === null ? null : state.perMinute(range, t, read(bucket))));
}

function added(series, read) {
  let sum = 0;
  return series.map(({ bucket }) => (sum += bucket === null ? 0 : read(bucket)));
}

/** Labels of a time axis, to the second where its ticks are closer than a minute. */
function times(ticks) {
  const exact = ticks.some((t) => t % 60 !== 0);
  return ticks.map((t) => (exact ? clock(t) : clock(t).slice(0, 5)));
}

class Chart {
  #spec;
  #plot = null;
  #form = "";
  #parts;
  #lines = [];
  #series = [];
  #state = null;

  constructor(spec) {
    this.#spec = spec;
    const details = h(
      "details",
      {},
      h("summary", {}, "Numbers"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${spec.title}: numbers` }, h("table")),
    );
    details.addEventListener("toggle", () => this.#tabulate());
    this.#parts = {
      legend: h("ul", { class: "legend" }),
      plot: h("div", { class: "plot", "aria-hidden": "true" }),
      details,
    };
    const name = h("h3", { id: `chart-${spec.id}` }, spec.title);
    this.element = h(
      "figure",
      { class: "card chart", "aria-labelledby": `chart-${spec.id}` },
      name,
      h("p", { class: "note" }, spec.note),
      this.#parts.plot,
      this.#parts.legend,
      details,
    );
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.#parts.plot);
  }

  show(state, range) {
    const series = state.series(range);
    const lines = this.#spec.lines(state, series, range);
    this.#state = state;
    this.#series = series;
    this.#lines = lines;
    const times = series.map(({ t }) => t);
    const data = [times, ...(this.#spec.stacked ? stack(lines) : lines.map((line) => line.values))];
    const empty = lines.every((line) => line.label === "limit" || line.values.every((v) => v === null || v === 0));
    const form = JSON.stringify([
      lines.map(({ values, ...rest }) => rest),
      document.documentElement.dataset.theme,
      color("--card"),
    ]);
    if (form !== this.#form) {
      this.#plot?.destroy();
      this.#parts.plot.replaceChildren();
      this.#plot = new uPlot(this.#options(lines), data, this.#parts.plot);
      this.#form = form;
    } else this.#plot.setData(data);
    this.#parts.plot.querySelector(".none")?.remove();
    if (empty && this.#spec.id !== "errors")
      this.#parts.plot.append(h("p", { class: "none" }, "Nothing in this time yet"));
    this.#legend(null);
    this.#tabulate();
  }

  #size() {
    return { width: Math.max(200, this.#parts.plot.clientWidth), height: this.#parts.plot.clientHeight };
  }

  #options(lines) {
    const axis = {
      stroke: color("--soft"),
      grid: { stroke: color("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const bands = lines.some((line) => line.band) ? [{ series: [2, 3], fill: `${color("--c2")}38` }] : [];
    return {
      ...this.#size(),
      padding: [8, 16, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: "pointsman" },
        ...(this.#spec.stacked ? { points: { show: false } } : {}),
        drag: { x: false, y: false },
      },
      scales: {
        x: { time: true },
        y: { range: (_, low, high) => this.#spec.range?.(low, high) ?? [0, (high || 1) * 1.08] },
      },
      axes: [
        { ...axis, size: 24, space: 70, values: (_, ticks) => times(ticks) },
        { ...axis, size: 54, space: 34, values: (_, ticks) => ticks.map((v) => this.#spec.format(v)) },
      ],
      series: [{}, ...lines.map((line) => this.#drawn(line))],
      bands,
      hooks: { draw: [(plot) => this.#mark(plot)], setCursor: [(plot) => this.#legend(plot.cursor.idx ?? null)] },
    };
  }

  #drawn(line) {
    const fill = this.#spec.stacked ? line.color : line.fill ? `${line.color}2e` : undefined;
    return {
      label: line.label,
      stroke: this.#spec.stacked ? color("--card") : line.color,
      fill,
      dash: line.dashed ? [5, 4] : undefined,
      width: line.faint ? 0.75 : line.wide ? 2.25 : this.#spec.stacked ? 1 : 1.5,
      points: { show: false },
      spanGaps: true,
    };
  }

  /** A line for every event on the time line. */
  #mark(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = color("--strong-line");
    ctx.lineWidth = 1;
    ctx.setLineDash([2, 3]);
    for (const event of this.#state.events) {
      if (!EVENTS.includes(event.kind) || event.ts < plot.scales.x.min) continue;
      const x = Math.round(plot.valToPos(event.ts, "x", true)) + 0.5;
      if (x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  #legend(index) {
    const shown = this.#lines.filter((line) => !line.faint);
    fill(
      this.#parts.legend,
      ...shown.map((line) => {
        const value = index === null ? [...line.values].reverse().find((v) => v !== null) : line.values[index];
        return h("li", {}, key(line, this.#spec.stacked), `${line.label} `, h("b", {}, this.#spec.format(value)));
      }),
    );
  }

  #tabulate() {
    const { details } = this.#parts;
    if (!details.open) return;
    const last = this.#series.length - 1;
    const rows = [];
    for (let i = last; i > last - ROWS && i >= 0; i--) {
      const cells = this.#lines.map((line) => [{ class: "n" }, this.#spec.format(line.values[i])]);
      rows.push({ cells: [clock(this.#series[i].t), ...cells] });
    }
    const head = ["From", ...this.#lines.map((line) => [{ class: "n" }, line.label])];
    fill(details.querySelector("table"), ...table(`${this.#spec.title}, newest first`, head, rows));
  }
}

/** What a line looks like, for its legend. */
function key(line, stacked) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const mark = document.createElementNS(space, stacked ? "rect" : "line");
  const shape = stacked
    ? { width: 10, height: 10, rx: 2, fill: line.color }
    : {
        x1: 0,
        y1: 5,
        x2: 16,
        y2: 5,
        stroke: line.color,
        "stroke-width": line.wide ? 3 : 2,
        "stroke-dasharray": line.dashed ? "4 3" : "none",
      };
  for (const [name, value] of Object.entries(shape)) mark.setAttribute(name, value);
  for (const [name, value] of Object.entries({ width: stacked ? 10 : 16, height: 10, "aria-hidden": "true" }))
    svg.setAttribute(name, value);
  svg.append(mark);
  return svg;
}

/** Values on top of those of the lines behind: drawn in order, each hides what is below it. */
function stack(lines) {
  const above = lines.map((line) => line.values.slice());
  for (let i = lines.length - 2; i >= 0; i--)
    above[i] = above[i].map((v, at) => (v === null ? null : v + (above[i + 1][at] ?? 0)));
  return above;
}

const charts = CHARTS.map((spec) => new Chart(spec));

export function placeCharts() {
  byId("charts").replaceChildren(...charts.map((chart) => chart.element));
}

export function showCharts(state, range) {
  for (const chart of charts) chart.show(state, range);
}
