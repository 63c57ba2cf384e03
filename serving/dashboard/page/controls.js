// The pool's models and what an operator may change about its traffic. Nothing is changed before it has been confirmed.

import { ask } from "./api.js";
import { confirm, form } from "./dialog.js";
import { byId, h, renew, table } from "./dom.js";
import { count, day, grade, interval, percent, usd } from "./format.js";
import { colorOf } from "./state.js";

const LEARNING = {
  apply: "What is learned decides: the normal way.",
  observe: "Feedback is learned, but calls go by the weights, or else to the first model that the limits leave.",
  bypass: "Learning is passed by: calls go by the weights, or else to the first model that can serve.",
};
const STATES = { admitted: "good", unknown: "", probing: "warn", filtered: "bad" };
const PHASES = { running: "warn", promoted: "good", rolled_back: "bad", aborted: "bad", released: "" };

let state = null;
const pool = () => state.figures.pool;
const at = (rest = "") => `/admin/pools/${encodeURIComponent(pool().name)}${rest}`;

export function placeControls(known) {
  state = known;
  for (const mode of Object.keys(LEARNING)) {
    const input = h("input", { type: "radio", name: "learning", value: mode });
    input.addEventListener("click", (event) => {
      event.preventDefault(); // it is moved by the service's answer alone
      if (mode !== pool().learning) setTimeout(() => switchLearning(mode));
    });
    byId("learning").append(h("label", { title: LEARNING[mode] }, input, h("span", {}, mode)));
  }
  byId("edit-weights").addEventListener("click", editWeights);
  byId("edit-canary").addEventListener("click", editCanary);
}

export function showControls() {
  const { weights, learning, models, sessions } = pool();
  for (const input of byId("learning").querySelectorAll("input")) input.checked = input.value === learning;
  const policy = learning === "apply" ? "The policy chooses for each call. " : "";
  const who = weights ? "Calls go by the operator's weights. " : policy;
  byId("steering-note").textContent =
    `${who}${LEARNING[learning]}${sessions ? ` ${count(sessions)} sessions keep their model.` : ""}`;
  const running = state.figures.canary?.phase === "running";
  byId("edit-canary").disabled = running || models.length < 2;
  const head = [
    "Model",
    "State",
    "Serves",
    [{ class: "n" }, "Share, last minute"],
    [{ class: "n" }, "Calls"],
    [{ class: "n" }, "Quality"],
    [{ class: "n" }, "Cost"],
    [{ class: "n" }, "Failed"],
    "Endpoints",
  ];
  renew(byId("models"), ...table("Models of the pool", head, models.map(row)));
  renew(byId("canary"), ...canary(state.figures.canary));
}

function row(model, place) {
  const total = state.figures.models[model.name];
  const { recent } = state.figures;
  const all = Object.values(recent.routed).reduce((sum, n) => sum + n, 0);
  const share = all ? (recent.routed[model.name] ?? 0) / all : null;
  const numbers = { class: "n" };
  return {
    props: { "data-model": model.name },
    cells: [
      [{}, h("span", { class: "swatch", color: colorOf(place), "aria-hidden": "true" }), model.name],
      h("span", { class: `badge ${STATES[model.state]}` }, model.state),
      toggle(model),
      [
        numbers,
        percent(share),
        h("span", { class: "bar", "aria-hidden": "true" }, h("i", { "width%": 100 * (share ?? 0) })),
        model.weight === null ? "" : h("small", {}, `weight ${model.weight}`),
      ],
      [numbers, count(total?.calls ?? 0)],
      [numbers, grade(total?.quality?.[0]), total?.quality ? h("small", {}, interval(total.quality)) : null],
      [
        numbers,
        usd(total?.cost_usd),
        total?.calls ? h("small", {}, `${usd((1000 * total.cost_usd) / total.calls)} per 1,000`) : null,
      ],
      [numbers, percent(total?.attempts ? total.failed / total.attempts : null)],
      endpoints(model.endpoints),
    ],
  };
}

function toggle(model) {
  const on = !model.disabled;
  const props = {
    type: "button",
    role: "switch",
    class: "switch",
    "aria-checked": String(on),
    "aria-label": `${model.name} serves calls`,
    "data-key": `switch-${model.name}`,
    onclick: () => switchModel(model.name),
  };
  return h("button", props, h("i", { "aria-hidden": "true" }), on ? "on" : "off");
}

function endpoints(states) {
  const bad = Object.entries(states).filter(([, breaker]) => breaker !== "closed");
  if (!bad.length)
    return h(
      "span",
      { class: "badge good" },
      Object.keys(states).length > 1 ? `${Object.keys(states).length} up` : "up",
    );
  return h(
    "span",
    {},
    ...bad.map(([name, breaker]) => h("span", { class: "badge bad" }, `${name}: ${breaker.replace("_", " ")}`)),
  );
}

async function switchModel(name) {
  const model = pool().models.find((m) => m.name === name);
  const everywhere = model.disabled && !pool().disabled.includes(name);
  const disabled = model.disabled ? pool().disabled.filter((n) => n !== name) : [...pool().disabled, name];
  await confirm({
    title: model.disabled ? `Switch ${name} on?` : `Switch ${name} off?`,
    text: model.disabled
      ? `It may get calls again${everywhere ? " in every pool" : ` of pool ${pool().name}`}.`
      : `It gets no more calls of pool ${pool().name}, until it is switched on again. Calls under way finish.`,
    action: model.disabled ? "Switch on" : "Switch off",
    done: `${name} is switched ${model.disabled ? "on" : "off"}`,
    work: () =>
      everywhere
        ? ask("PATCH", `/admin/models/${encodeURIComponent(name)}`, { disabled: false })
        : ask("PATCH", at(), { disabled }),
  });
}

async function switchLearning(mode) {
  await confirm({
    title: `Set learning to ${mode}?`,
    text: LEARNING[mode],
    changes: [`learning of pool ${pool().name}: ${pool().learning} → ${mode}`],
    action: `Set to ${mode}`,
    done: `Learning is set to ${mode}`,
    work: () => ask("PATCH", at(), { learning: mode }),
  });
}

async function editWeights() {
  const { weights, models, name } = pool();
  const free = h("input", { type: "checkbox", checked: weights === null });
  const inputs = models.map((model) =>
    h("input", {
      type: "number",
      min: "0",
      step: "any",
      id: `weight-${model.name}`,
      value: String(weights?.[model.name] ?? 0),
      disabled: weights === null,
    }),
  );
  free.addEventListener("change", () => inputs.forEach((input) => (input.disabled = free.checked)));
  const wanted = await form({
    title: `Weights of pool ${name}`,
    text: "Shares of the calls, relative to each other. Filters and probes still hold.",
    fields: [
      h("label", { class: "check" }, free, "No weights: the policy chooses"),
      h(
        "div",
        { class: "grid" },
        ...models.flatMap((model, i) => [h("label", { for: `weight-${model.name}` }, model.name), inputs[i]]),
      ),
    ],
    action: "Review",
    read() {
      if (free.checked) return { weights: null };
      const values = inputs.map((input) => Number(input.value));
      if (values.some((v) => !Number.isFinite(v) || v < 0)) throw new Error("A weight is a number of at least 0.");
      if (!values.some((v) => v > 0)) throw new Error("At least one model needs a weight above 0.");
      return { weights: Object.fromEntries(models.map((m, i) => [m.name, values[i]]).filter(([, v]) => v > 0)) };
    },
  });
  if (wanted === null) return;
  const sum = Object.values(wanted.weights ?? {}).reduce((a, b) => a + b, 0);
  await confirm({
    title: wanted.weights === null ? "Let the policy choose?" : "Set these weights?",
    text:
      wanted.weights === null
        ? "The operator's weights no longer hold."
        : "The policy no longer chooses: calls go by these shares at once.",
    changes: Object.entries(wanted.weights ?? {}).map(
      ([model, weight]) => `${model}: ${percent(weight / sum)} of the calls`,
    ),
    action: wanted.weights === null ? "Let it choose" : "Set weights",
    done: "Weights are changed",
    work: () => ask("PATCH", at(), wanted),
  });
}

async function editCanary() {
  const { models, name } = pool();
  const choice = (id, first) =>
    h("select", { id }, ...first, ...models.map((m) => h("option", { value: m.name }, m.name)));
  const model = choice("canary-model", []);
  const control = choice("canary-control", [h("option", { value: "" }, "the pool's other models")]);
  const share = h("input", { type: "number", id: "canary-share", min: "0.1", max: "100", step: "any", value: "1" });
  const wanted = await form({
    title: `Canary in pool ${name}`,
    text: "The model gets a share of the calls, step by step more as it proves itself, and none once it proves worse.",
    fields: [
      h(
        "div",
        { class: "grid" },
        h("label", { for: "canary-model" }, "Model on trial"),
        model,
        h("label", { for: "canary-share" }, "First share, % of the calls"),
        share,
        h("label", { for: "canary-control" }, "Compared with"),
        control,
      ),
    ],
    action: "Review",
    read() {
      const first = Number(share.value) / 100;
      if (!(first > 0 && first <= 1)) throw new Error("The share is above 0 and at most 100 %.");
      if (control.value === model.value) throw new Error("Compare it with another model than itself.");
      return { model: model.value, share: first, ...(control.value ? { compare_to: control.value } : {}) };
    },
  });
  if (wanted === null) return;
  await confirm({
    title: `Start the canary of ${wanted.model}?`,
    changes: [
      `${wanted.model} gets ${percent(wanted.share)} of the calls of pool ${name}`,
      `it is compared with ${wanted.compare_to ?? "the pool's other models"}`,
    ],
    action: "Start canary",
    done: "The canary has started",
    work: () => ask("POST", at("/canary"), wanted),
  });
}

function canary(status) {
  if (status === null) return [];
  const running = status.phase === "running";
  const place = running
    ? `step ${status.step + 1} of ${status.steps.length}, ${percent(status.share)} of the calls`
    : "";
  const end = running || status.kept_out;
  const button = h(
    "button",
    { type: "button", "data-key": "end-canary", onclick: endCanary },
    running ? "Abort canary…" : "Let it in again…",
  );
  const checks = status.guardrails.map((check) =>
    h(
      "li",
      {},
      h(
        "span",
        { class: `badge ${check.verdict === "kept" ? "good" : check.verdict === "broken" ? "bad" : ""}` },
        check.verdict,
      ),
      `${check.text}`,
    ),
  );
  return [
    h(
      "div",
      { class: "canary", id: "canary-card" },
      h(
        "div",
        { class: "head" },
        h(
          "h3",
          {},
          `Canary: ${status.model} `,
          h("span", { class: `badge ${PHASES[status.phase] ?? ""}` }, status.phase.replace("_", " ")),
        ),
        end ? button : null,
      ),
      h(
        "p",
        { class: "note" },
        [
          place,
          status.compare_to && `compared with ${status.compare_to}`,
          status.held && `held: ${status.held}`,
          status.kept_out && "the model gets no calls of this pool",
        ]
          .filter(Boolean)
          .join(" · "),
      ),
      running && checks.length ? h("ul", {}, ...checks) : null,
      running ? null : h("p", { class: "note" }, last(status.history)),
    ),
  ];
}

function last(history) {
  const entry = history[history.length - 1];
  return entry ? `${day(entry.ts)}: ${entry.reason ?? entry.what.replace("canary_", "")}` : "";
}

async function endCanary() {
  const { model, phase } = state.figures.canary;
  const running = phase === "running";
  await confirm({
    title: running ? `Abort the canary of ${model}?` : `Let ${model} in again?`,
    text: running ? "It gets no more calls of this pool until it is let in again." : "The policy may choose it again.",
    action: running ? "Abort canary" : "Let it in",
    done: running ? "The canary is aborted" : `${model} is let in again`,
    work: () => ask("DELETE", at("/canary")),
  });
}
