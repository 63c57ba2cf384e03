"""The page of a report, and of a replay: sections made from the figures' plain data, nothing computed, nothing fetched.

What the page says is what the data says: a number that is not in `evaluation.report`'s data is not here either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.report_charts import Line, lines
from evaluation.report_events import (
    calibration_section,
    exploration_section,
    failures_section,
    standing_section,
)
from evaluation.report_html import Markup, block, definitions, note, page, paragraph, section, table, tiles
from evaluation.report_policies import policies_section
from evaluation.report_sections import latency_section, quality_section, saving_section
from evaluation.report_series import busiest_over_time
from evaluation.report_text import moment, number, percent

__all__ = ["replay_page", "report_page"]

_CONTENTS = (
    ("money", "Money"),
    ("saving", "Against each single model"),
    ("quality", "Quality"),
    ("latency", "Latency"),
    ("failures", "Failures"),
    ("standing", "Filter events"),
    ("traffic", "Traffic"),
    ("exploration", "Exploration"),
    ("calibration", "Propensities"),
    ("policies", "Other policies"),
)


def report_page(data: Mapping[str, Any]) -> str:
    """The page of `evaluation.report.report_data`. Raises InvalidInput without matplotlib."""
    pool = data["selection"]["pool"]
    return page(
        f"Pointsman report: pool {pool}",
        _CONTENTS,
        _head(data["selection"], data["made_ts"]),
        _tiles(data),
        _money(data["spend"]),
        saving_section(data["single_models"]),
        quality_section(data["models"], data["selection"]["limits"].get("min_accuracy")),
        latency_section(data["latency"], data["traffic"]["by_model"]),
        failures_section(data["failures"], data["feedback"]),
        standing_section(data["standing"]),
        _traffic(data["traffic"]),
        exploration_section(data["exploration"], data["not_predicted_best"]),
        calibration_section(data["calibration"]),
        policies_section(data["policies"]),
        _about(data["judged"]),
    )


def replay_page(results: Mapping[str, Any]) -> str:
    """The page of what `pointsman replay` found: {"selection": …, "policies": [judgement_data(…)]}."""
    selection = results["selection"]
    return page(
        f"Pointsman replay: pool {selection['pool']}", (), _head(selection, None), policies_section(results["policies"])
    )


def _head(selection: Mapping[str, Any], made_ts: float | None) -> Markup:
    """What the page is about: which log, which decisions, and what was left out."""
    rows: list[tuple[str, str]] = [
        ("log", ", ".join(selection["logs"])),
        ("decisions", f"{selection['decisions']:,} of pool {selection['pool']}"),
        ("time (UTC)", f"{moment(selection['from_ts'])} to {moment(selection['to_ts'])}"),
        ("models", str(len(selection["models"]))),
    ]
    if selection["where"] is not None:
        rows.append(("only where", selection["where"]))
    if selection["left_out_by_mode"]:
        why = selection["left_out_because"]
        counted = "; ".join(f"{count:,} {kind} ({why[kind]})" for kind, count in selection["left_out_by_mode"].items())
        rows.append(("left out", counted))
    if made_ts is not None:
        rows.append(("made", moment(made_ts)))
    return definitions(rows)


def _tiles(data: Mapping[str, Any]) -> Markup:
    """The few numbers to see first."""
    quality, spend = data["selection"]["quality"], data["spend"]
    overall = data["latency"]["overall"]
    limit_s = data["latency"]["limit_s"]
    attempts = sum(row["attempts"] for row in data["failures"]["by_model"])
    failed = sum((row["mean"] or 0.0) * row["samples"] for row in data["failures"]["by_model"])
    per_call = spend["usd_per_call"]
    shown = (
        (f"{data['selection']['decisions']:,}", "decisions", ""),
        (number(spend["usd"]), "USD spent", f"{number(None if per_call is None else 1000 * per_call)} per 1,000 calls"),
        (number(quality["mean"], 3), "mean quality", f"of {quality['samples']:,} graded calls"),
        (
            f"{number(None if overall is None else overall['p95'], 3)} s",
            "p95 latency",
            "no limit known" if limit_s is None else f"limit {limit_s:g} s",
        ),
        (percent(failed / attempts if attempts else None), "failed attempts", f"of {attempts:,}"),
    )
    return tiles(shown)


def _money(spend: Mapping[str, Any]) -> Markup:
    """Spend in all, by model, and as it grew."""
    rows = (
        [
            row["model"],
            f"{row['calls']:,}",
            percent(row["share_of_attempts"]),
            number(row["usd"]),
            percent(row["share_of_spend"]),
            number(None if row["usd_per_call"] is None else 1000 * row["usd_per_call"]),
        ]
        for row in spend["by_model"]
    )
    head = ["model", "attempts", "of attempts", "USD", "of spend", "USD per 1,000"]
    by_model = table("Spend by model", head, rows)
    if spend["usd"] is None:
        return section(
            "money", "Money", note("No cost of any call is known: give the models prices."), block(None, by_model)
        )
    over_time = spend["over_time"]
    grown = Line("USD", [row["ts"] for row in over_time], [row["cumulated_usd"] for row in over_time])
    label = f"Spend over time, reaching {number(spend['usd'])} USD"
    unknown = spend["answers_without_cost"]
    said = [note(f"The cost of {unknown:,} answers is not known and not in these sums.")] if unknown else []
    return section(
        "money",
        "Money",
        paragraph(
            f"{number(spend['usd'])} USD for {spend['calls_with_cost']:,} calls, all their attempts counted:"
            f" {number(1000 * spend['usd_per_call'])} USD per 1,000 calls."
        ),
        *said,
        block(lines("money", label, [grown], "USD, cumulated"), by_model),
    )


def _traffic(traffic: Mapping[str, Any]) -> Markup:
    """Who got the calls, and when."""
    total: dict[float, int] = {}
    for row in traffic["over_time"]:
        total[row["ts"]] = total.get(row["ts"], 0) + row["calls"]
    names = [row["model"] for row in traffic["by_model"]]
    series = busiest_over_time(traffic["over_time"], names, lambda row: row["calls"] / total[row["ts"]], sorted(total))
    rows = ([row["model"], f"{row['calls']:,}", percent(row["share"])] for row in traffic["by_model"])
    return section(
        "traffic",
        "Traffic",
        block(
            lines("traffic", "Share of the calls by model over time", series, "share of calls"),
            table("Calls by the model they were sent to", ["model", "calls", "share"], rows),
        ),
    )


def _about(judged: Mapping[str, Any]) -> Markup:
    """What estimates rest on."""
    if judged["cannot_tell"] is not None:
        return Markup("")
    older = judged["older_left_out"]
    which = f"the latest {judged['decisions']:,} decisions ({older:,} older ones left out)" if older else (
        f"all {judged['decisions']:,} decisions"
    )  # fmt: skip
    return section(
        "about",
        "About the estimates",
        paragraph(
            f"Off-policy estimates rest on {which}. They are doubly robust, from the logged propensities, with 95 %"
            " bootstrap intervals; where the log does not support a policy well enough (an effective sample size below"
            f" {number(judged['min_effective_samples'])}, or choices that could not be drawn) there is no number."
            " Intervals of means and shares are Wilson's at 95 %. All times are UTC."
        ),
    )
