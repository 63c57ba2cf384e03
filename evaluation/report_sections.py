"""Sections of a report's page about the models: each alone against what was logged, their quality, their latency.

Each turns one part of the data into charts with tables beside them. Computes nothing that the data does not say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from evaluation.report_charts import Dot, Line, dots, lines, scatter
from evaluation.report_html import Markup, block, cell, joined, note, paragraph, section, table
from evaluation.report_policies import CANNOT_TELL, estimate_cell, estimate_text
from evaluation.report_series import MOST_SERIES
from evaluation.report_text import between, number, percent

__all__ = ["brief", "latency_section", "quality_section", "saving_section", "share_cells"]

_MOST_CATEGORIES: Final = 12
_SHOWN_DOTS: Final = 40  # rows of a chart of dots; the table has all


def saving_section(found: Mapping[str, Any]) -> Markup:
    """What each model alone would have cost, and how good it would have been, on the same calls."""
    name, title = "saving", "Against each single model"
    if found["cannot_tell"] is not None:
        return section(name, title, paragraph(f"Cannot tell, because {found['cannot_tell']}."))
    rows = [_single_row(row) for row in found["models"]]
    head = [
        *("all calls to", "USD per 1,000", "saved, USD", "quality", "quality against logged"),
        *("predicted USD per 1,000", "predicted quality"),
    ]
    logged = found["logged"]
    beside = table(
        "Each model alone on the same calls, estimated (doubly robust) and as the service predicted", head, rows
    )
    said = paragraph(
        f"As logged: {estimate_text(logged['cost_usd'], 1000.0)} USD per 1,000 calls, quality"
        f" {estimate_text(logged['quality'])}. Saved is what all {found['decisions']:,} calls would have cost with the"
        " model alone, less what they did cost. Predictions are the means of what the service itself predicted at each"
        " call: no estimate from outcomes, and biased where its heads are."
    )
    return section(name, title, said, block(_single_chart(found), beside, wide=True))


def _single_row(row: Mapping[str, Any]) -> list[str | Markup]:
    cost, quality = row["cost_usd"], row["quality"]
    return [
        row["model"],
        _estimated(cost, 1000.0),
        number(None) if row["saving_usd"] is None else estimate_cell(row["saving_usd"], sign="+"),
        _estimated(quality),
        number(None) if quality["difference"] is None else estimate_cell(quality["difference"], sign="+"),
        number(None if row["predicted_cost_usd"] is None else 1000 * row["predicted_cost_usd"]),
        number(row["predicted_quality"], 3),
    ]


def _estimated(metric: Mapping[str, Any], scale: float = 1.0) -> str | Markup:
    if metric["estimate"] is None:
        return cell(CANNOT_TELL, brief(metric))
    return estimate_cell(metric["estimate"], scale)


def brief(metric: Mapping[str, Any]) -> str:
    """Why there is no estimate, in few words; --json has the sentence."""
    reason = str(metric["cannot_tell"])
    found = re.search(r"effective sample size is ([\d,]+)", reason)
    if found:
        return f"effective sample {found[1]}"
    found = re.match(r"([\d.]+%) of the policy's choices", reason)
    return f"{found[1]} without support" if found else reason


def _single_chart(found: Mapping[str, Any]) -> str | None:
    points: list[tuple[str, Dot, Dot]] = []
    kinds: list[int] = []
    logged = found["logged"]
    if logged["cost_usd"] and logged["quality"]:
        points.append(("as logged", _dot(logged["cost_usd"], 1000.0), _dot(logged["quality"])))
        kinds.append(0)
    for row in found["models"]:
        estimates = row["cost_usd"]["estimate"], row["quality"]["estimate"]
        if None not in estimates:
            points.append((row["model"], _dot(estimates[0], 1000.0), _dot(estimates[1])))
            kinds.append(1)
        elif row["predicted_cost_usd"] is not None and row["predicted_quality"] is not None:
            points.append((row["model"], Dot(1000 * row["predicted_cost_usd"]), Dot(row["predicted_quality"])))
            kinds.append(2)
    if not points:
        return None
    names = ("as logged", "one model alone, estimated", "one model alone, predicted only")
    series = [(text, [kind == i for kind in kinds]) for i, text in enumerate(names)]
    label = "Cost against quality: the calls as logged, and each model alone"
    return scatter("saving", label, points, series, ("USD per 1,000 calls", "quality"))


def _dot(estimate: Mapping[str, Any], scale: float = 1.0) -> Dot:
    return Dot(*(estimate[key] * scale for key in ("value", "low", "high")))


def quality_section(models: Sequence[Mapping[str, Any]], floor: float | None) -> Markup:
    """Feedback and benchmark accuracy by model, then by category."""
    graded = [m for m in models if m["overall"]["quality"]["samples"] or m["overall"]["accuracy"]["samples"]]
    if not graded:
        return section("quality", "Quality", note("Neither feedback nor a benchmark result is in the log."))
    kinds = {"quality": ("feedback", "graded calls"), "accuracy": ("benchmarks", "answers")}
    there = {kind: names for kind, names in kinds.items() if any(m["overall"][kind]["samples"] for m in models)}
    rows = [[m["model"], *(text for kind in there for text in _graded_cells(m["overall"][kind]))] for m in models]
    head = ["model", *(text for by, counted in there.values() for text in (by, "95 %", counted))]
    chart = dots(
        "quality",
        "Mean quality by model, from feedback and from benchmarks, with 95 % intervals",
        [(m["model"], [_share_dot(m["overall"][kind]) for kind in there]) for m in graded[:_SHOWN_DOTS]],
        [by for by, _ in there.values()],
        "quality",
        reference=None if floor is None else (floor, f"accuracy limit {floor:g}"),
    )
    said = paragraph(
        "The mean of feedback on answered calls, and of each model's latest answer to every benchmark item, with"
        " Wilson's intervals. A policy chose who answered which call: models are compared on different calls here."
    )
    return section(
        "quality", "Quality", said, block(chart, table("Quality by model", head, rows)), _by_category(models)
    )


def _graded_cells(share: Mapping[str, Any]) -> list[str]:
    known = share["mean"] is not None
    interval = between(number(share["low"], 3), number(share["high"], 3)) if known else number(None)
    return [number(share["mean"], 3), interval, f"{share['samples']:,}"]


def _share_dot(share: Mapping[str, Any]) -> Dot:
    return Dot(share["mean"], share["low"], share["high"])


def _by_category(models: Sequence[Mapping[str, Any]]) -> Markup:
    """Quality of each model in each category, the busiest categories first, with benchmark accuracy below."""
    counts: dict[str | None, int] = {}
    for model in models:
        for part in model["categories"]:
            counts[part["category"]] = counts.get(part["category"], 0) + part["calls"] + part["benchmark_calls"]
    categories = sorted(counts, key=lambda name: (-counts[name], name or ""))
    if categories in ([], [None]):
        return Markup("")
    shown, more = categories[:_MOST_CATEGORIES], len(categories) - _MOST_CATEGORIES
    rows = []
    for model in models:
        by_name = {part["category"]: part for part in model["categories"]}
        rows.append([model["model"], *(_category_cell(by_name.get(name)) for name in shown)])
    head = ["model", *("(none)" if name is None else name for name in shown)]
    said = [note(f"The busiest {_MOST_CATEGORIES} categories; --json has the other {more}.")] if more > 0 else []
    caption = "Quality by model and category, with 95 % interval and graded calls (b: benchmark accuracy and answers)"
    return joined([*said, block(None, table(caption, head, rows))])


def _category_cell(part: Mapping[str, Any] | None) -> str | Markup:
    if part is None:
        return number(None)
    quality, accuracy = part["quality"], part["accuracy"]
    below = ""
    if quality["mean"] is not None:
        low, high = (number(quality[end], 2) for end in ("low", "high"))
        below = f"{between(low, high)}, {quality['samples']:,}"
    if accuracy["mean"] is not None:
        below += f"{'; ' if below else ''}b {number(accuracy['mean'], 3)}, {accuracy['samples']:,}"
    return cell(number(quality["mean"], 3), below)


def latency_section(latency: Mapping[str, Any], traffic: Sequence[Mapping[str, Any]]) -> Markup:
    """Quantiles by model, in all and over time, against the limit."""
    limit_s = latency["limit_s"]
    timed = [row for row in latency["by_model"] if row["samples"]]
    if not timed:
        return section("latency", "Latency", note("No latency of any answer is in the log."))
    names = [row["model"] for row in traffic]
    timed.sort(key=lambda row: names.index(row["model"]) if row["model"] in names else len(names))
    limit = None if limit_s is None else (limit_s, f"p95 limit {limit_s:g} s")
    rows = [
        [
            row["model"],
            *(number(row[q], 3) for q in ("p50", "p95", "p99")),
            f"{row['samples']:,}",
            *share_cells(row["slow"]),
        ]
        for row in timed
    ]
    head = ["model", "p50 s", "p95 s", "p99 s", "answers", "slow", "95 %"]
    quantiles = [
        (row["model"], [Dot(row["p50"], row["p50"], row["p99"]), Dot(row["p95"]), Dot(row["p99"])]) for row in timed
    ]
    chart = dots(
        "latency", "p50, p95 and p99 latency by model", quantiles[:_SHOWN_DOTS], ("p50", "p95", "p99"), "seconds",
        reference=limit, apart=False,
    )  # fmt: skip
    said = (
        note("No limit is known, so nothing counts as slow: -c FILE gives the limits.")
        if limit_s is None
        else paragraph(f"Slow: beyond {limit_s:g} s, or failed. The limit allows 5 % of a model's calls to be slow.")
    )
    panels = [_panel(latency["over_time"], row["model"], i, limit) for i, row in enumerate(timed[: MOST_SERIES + 1])]
    grid = Markup(f'<div class="panels">{"".join(f"<figure>{panel}</figure>" for panel in panels)}</div>')
    more = len(timed) - len(panels)
    rest = [note(f"The {len(panels)} busiest models; --json has the other {more}.")] if more else []
    by_model = table("Latency of answers by model, and the share of slow calls", head, rows)
    return section("latency", "Latency", said, block(chart, by_model), grid, *rest)


def share_cells(share: Mapping[str, Any]) -> tuple[str, str]:
    """A share and its interval, in per cent."""
    if share["mean"] is None:
        return number(None), number(None)
    return percent(share["mean"]), between(percent(share["low"]), percent(share["high"]))


def _panel(rows: Sequence[Mapping[str, Any]], model: str, i: int, limit: tuple[float, str] | None) -> str:
    of = [row for row in rows if row["model"] == model]
    ts = [row["ts"] for row in of]
    series = [Line(q, ts, [row[q] for row in of]) for q in ("p50", "p95", "p99")]
    return lines(
        f"latency-{i}", f"Latency of {model} over time", series, "seconds", limit=limit, title=model, height_in=1.9
    )
