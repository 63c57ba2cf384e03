"""The off-policy comparison as part of a page: per policy and metric the estimates with their intervals, or why not.

Made from the data form of judgements (`evaluation.replay_view.judgement_data`). Estimates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from evaluation.report_charts import Dot, dots
from evaluation.report_html import (
    Markup,
    block,
    cell,
    definitions,
    heading,
    joined,
    note,
    paragraph,
    section,
    strong,
    table,
)
from evaluation.report_text import between, number, percent

__all__ = ["CANNOT_TELL", "estimate_cell", "estimate_text", "policies_section"]

TITLES: Final = {
    "quality": "quality",
    "cost_usd": "USD per 1,000 calls",
    "slow": "share of slow calls",
    "reward": "reward",
}
SCALES: Final = {"cost_usd": 1000.0}
_KINDS: Final = ("bootstrap", "bernstein", "anytime")
_MOST_GROUPS: Final = 25
CANNOT_TELL: Final = "cannot tell"


def policies_section(judgements: Sequence[Mapping[str, Any]]) -> Markup:
    """All policies: first side by side, then each with its estimators, its support, and its groups."""
    if not judgements:
        return section("policies", "Other policies", note("No policy was asked for: --policy names them."))
    metrics = [name for name in TITLES if any(name in judgement["metrics"] for judgement in judgements)]
    rows = (
        [judgement["policy"], *(_compared(judgement["metrics"].get(name), SCALES.get(name, 1.0)) for name in metrics)]
        for judgement in judgements
    )
    return section(
        "policies",
        "Other policies",
        paragraph(
            "What each policy would have yielded on these calls: doubly robust estimates with 95 % intervals"
            " (bootstrap), and below them the difference from what was logged."
        ),
        block(None, table("Policies", ["policy", *(TITLES[name] for name in metrics)], rows)),
        *(_policy(judgement, i) for i, judgement in enumerate(judgements)),
        *_assumptions(judgements),
    )


def _assumptions(judgements: Sequence[Mapping[str, Any]]) -> Iterator[Markup]:
    """What each kind of interval rests on, and what the estimators' names mean."""
    metrics = [metric for judgement in judgements for metric in judgement["metrics"].values()]
    estimates = [estimate for metric in metrics for estimate in (metric["logged"], *metric["estimates"])]
    found = {i["kind"]: i["assumes"] for estimate in estimates for i in estimate["intervals"]}
    if any(metric["estimates"] for metric in metrics):
        yield note(
            "DM: direct method. IPS: inverse propensity scoring. DR: doubly robust. SN: self-normalised. DRos: DR with"
            " optimistic shrinkage. MRDR: more robust DR. An estimate marked biased may lie beside the truth by more"
            " than its interval says."
        )
        yield definitions((f"{kind} assumes", text) for kind, text in found.items())


def estimate_text(estimate: Mapping[str, Any] | None, scale: float = 1.0, *, sign: str = "") -> str:
    """A value with its interval: "0.91 (0.89 to 0.93)"."""
    if estimate is None:
        return number(None)
    value, low, high = (_signed(estimate[key] * scale, sign) for key in ("value", "low", "high"))
    return f"{value} ({between(low, high)})"


def estimate_cell(estimate: Mapping[str, Any], scale: float = 1.0, *, sign: str = "") -> Markup:
    """A value with its interval below."""
    value, _, interval = estimate_text(estimate, scale, sign=sign).partition(" (")
    return cell(value, interval.removesuffix(")"))


def _signed(value: float, sign: str) -> str:
    text = number(value, 3)
    return f"+{text}" if sign and value > 0 else text


def _compared(metric: Mapping[str, Any] | None, scale: float) -> str | Markup:
    if metric is None:
        return number(None)
    best = _headline(metric)
    if best is None:
        return CANNOT_TELL
    difference = "" if metric["difference"] is None else estimate_text(_plain(metric["difference"]), scale, sign="+")
    return cell(estimate_text(_plain(best), scale), difference)


def _headline(metric: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((e for e in metric["estimates"] if e["estimator"] == metric["headline"]), None)


def _plain(estimate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The value with its first interval; None where one of them is no number."""
    interval = next(iter(estimate["intervals"]), None)
    if interval is None or None in (estimate["value"], interval["low"], interval["high"]):
        return None
    return {"value": estimate["value"], "low": interval["low"], "high": interval["high"]}


def _policy(judgement: Mapping[str, Any], index: int) -> Markup:
    support = paragraph(
        f"Support: effective sample size {judgement['effective_samples']:,.0f} of {judgement['decisions']:,}"
        f" decisions; the largest weight is {number(judgement['largest_weight'], 3)}, the mean"
        f" {number(judgement['mean_weight'], 4)} (1 if propensities are right)."
    )
    gaps = sorted(judgement["gaps"].items(), key=lambda item: -item[1])[:5]
    named = ", ".join(f"{arm} {percent(share)}" for arm, share in gaps)
    lines = [note(line) for line in judgement["notes"]]
    if gaps:
        share = percent(judgement["gap_share"])
        lines.insert(0, paragraph(f"{share} of its choices are models that could not be drawn there: {named}."))
    metrics = [
        _metric(name, metric, f"p{index}-{name}", judgement["policy"]) for name, metric in judgement["metrics"].items()
    ]
    return joined([heading(judgement["policy"]), support, *lines, *metrics, *_groups(judgement)])


def _metric(name: str, metric: Mapping[str, Any], chart: str, policy: str) -> Markup:
    title, scale = TITLES.get(name, name), SCALES.get(name, 1.0)
    if metric["cannot_tell"] is not None:
        return paragraph(strong(f"{title}: "), f"cannot tell, because {metric['cannot_tell']}.")
    estimates = [metric["logged"], *metric["estimates"]]
    rows = [
        [_name(e, metric["headline"]), number(_times(e["value"], scale), 4), *_interval_cells(e, scale)]
        for e in [*estimates, *([metric["difference"]] if metric["difference"] else [])]
    ]
    drawn = dots(
        chart,
        f"{title} under {policy}: every estimator with its intervals",
        [(e["estimator"], [_dot(e, kind, shown=kind == _KINDS[0]) for kind in _KINDS]) for e in estimates],
        _KINDS,
        title,
        reference=(metric["logged"]["value"], "as logged") if metric["logged"]["value"] is not None else None,
        scale=scale,
    )
    head = ["estimator", "value", *_KINDS]
    counted = f"{title}, of {metric['observed']:,} calls where it is known"
    return block(drawn, table(counted, head, rows))


def _name(estimate: Mapping[str, Any], headline: str | None) -> str | Markup:
    name = estimate["estimator"]
    if estimate.get("threshold") is not None:
        name += f" (at {estimate['threshold']:g})"
    if estimate.get("rounds") is not None:
        name += f" ({estimate['rounds']:,} rounds)"
    if headline is not None and estimate["estimator"] == headline:
        return strong(name)
    return cell(name, "biased") if estimate.get("biased") else name


def _interval_cells(estimate: Mapping[str, Any], scale: float) -> Iterator[str]:
    by_kind = {interval["kind"]: interval for interval in estimate["intervals"]}
    for kind in _KINDS:
        interval = by_kind.get(kind)
        yield "" if interval is None else between(*(number(_times(interval[end], scale), 3) for end in ("low", "high")))


def _dot(estimate: Mapping[str, Any], kind: str, *, shown: bool) -> Dot:
    interval = next((i for i in estimate["intervals"] if i["kind"] == kind), None)
    value = estimate["value"] if shown or interval is not None else None
    return Dot(value) if interval is None else Dot(value, interval["low"], interval["high"])


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _groups(judgement: Mapping[str, Any]) -> Iterator[Markup]:
    """The headline by category and by tier, where there are several."""
    metrics = {name: metric for name, metric in judgement["metrics"].items() if name in TITLES}
    for kind in ("category", "tier"):
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for name, metric in metrics.items():
            for group in metric["groups"].get(kind, ()):
                found.setdefault(group["group"], {})[name] = group
        if len(found) < 2:
            continue
        if not any(group["estimate"] for of in found.values() for group in of.values()):
            yield note(f"By {kind}: cannot tell for any, the log has too few decisions of each for this policy.")
            continue
        rows = (
            [group, *(_group_cell(of.get(name), SCALES.get(name, 1.0)) for name in metrics)]
            for group, of in list(found.items())[:_MOST_GROUPS]
        )
        head = [kind, *(TITLES[name] for name in metrics)]
        yield block(None, table(f"By {kind}, as logged → doubly robust", head, rows))


def _group_cell(group: Mapping[str, Any] | None, scale: float) -> str | Markup:
    if group is None:
        return number(None)
    if group["estimate"] is None:
        return cell(CANNOT_TELL, f"of {group['decisions']:,}")
    logged = number(_times(group["logged"], scale), 3)
    return f"{logged} → {estimate_text(_plain(group['estimate']), scale)}"
