"""Sections of a report's page about what happened and how decisions were made: failures, filters, exploration, draws.

Each turns one part of the data into a chart with tables beside it. Computes nothing that the data does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from evaluation.report_charts import Dot, diagonal, timeline
from evaluation.report_html import Markup, block, cell, joined, note, paragraph, section, table
from evaluation.report_policies import CANNOT_TELL, estimate_cell
from evaluation.report_sections import brief, share_cells
from evaluation.report_text import between, moment, number, percent

__all__ = ["calibration_section", "exploration_section", "failures_section", "standing_section"]

_MOST_EVENTS: Final = 40


def failures_section(failures: Mapping[str, Any], feedback: Mapping[str, Any]) -> Markup:
    """Attempts that failed, and calls nobody told anything about."""
    by_model = [
        [row["model"], f"{row['attempts']:,}", percent(row["mean"]), between(percent(row["low"]), percent(row["high"])),
         f"{row['cancelled']:,}"]
        for row in failures["by_model"]
    ]  # fmt: skip
    kinds = [
        [row["model"], row["status"] or "", number(row["http_status"]), row["error"] or "", f"{row['attempts']:,}"]
        for row in failures["kinds"]
    ]
    parts = [
        table(
            "Attempts that failed by the model's fault", ["model", "attempts", "failed", "95 %", "abandoned"], by_model
        )
    ]
    if kinds:
        head = ["model", "status", "HTTP", "error", "attempts"]
        parts.append(table("What was not answered, the most frequent first", head, kinds, words=frozenset({1, 3})))
    told = paragraph(
        f"Of {failures['decisions']:,} decisions {failures['with_fallback']:,} went on to another model,"
        f" {failures['without_answer']:,} ended without an answer, and for {failures['without_outcome']:,} the log has"
        " no outcome."
    )
    return section("failures", "Failures and missing feedback", told, block(None, *parts), _missing(feedback))


def _missing(feedback: Mapping[str, Any]) -> Markup:
    overall = feedback["overall"]
    if overall is None or not overall["answered"]:
        return Markup("")
    rows = [
        [
            row["model"],
            f"{row['answered']:,}",
            f"{row['with_feedback']:,}",
            f"{row['assumed']:,}",
            *share_cells(row["missing"]),
        ]
        for row in feedback["by_model"]
    ]
    head = ["model", "answered", "with feedback", "assumed", "missing", "95 %"]
    said = paragraph(
        f"{percent(overall['missing']['mean'])} of {overall['answered']:,} answered calls have no feedback."
    )
    return joined([said, block(None, table("Feedback by model; an assumed quality counts as missing", head, rows))])


def standing_section(standing: Mapping[str, Any]) -> Markup:
    """The states of the models over time, and what changed them."""
    title = "Filter events"
    if not standing["events"]:
        return section("standing", title, note("No model changed its standing, and none was reset by drift."))
    chart = timeline(
        "standing",
        "States of the models over time, with drift resets marked",
        standing["models"],
        standing["from_ts"],
        standing["to_ts"],
    )
    latest = standing["latest"][-_MOST_EVENTS:]
    rows = [
        [
            moment(event["ts"]),
            event["model"],
            _change(event),
            event["constraint_name"] or "",
            event["reason"] or "",
            number(event["calls"]),
            percent(event["rate"]),
        ]
        for event in reversed(latest)
    ]
    head = ["time (UTC)", "model", "change", "limit", "reason", "its calls", "bad"]
    which = (
        f"The latest {len(latest)} of {standing['events']:,} events" if standing["events"] > len(latest) else "Events"
    )
    return section(
        "standing",
        title,
        paragraph("A dotted line: the log does not tell the state, as it has changes only."),
        block(chart, table(f"{which}, newest first", head, rows, words=frozenset({1, 2, 3, 4})), wide=True),
    )


def _change(event: Mapping[str, Any]) -> str:
    if event["to_state"] is None:
        return {"drift": "reset by drift"}.get(event["reason"] or "", event["reason"] or "")
    return f"{event['from_state']} → {event['to_state']}"


def exploration_section(found: Mapping[str, Any], shares: Mapping[str, Any]) -> Markup:
    """What exploring cost: what the calls would have yielded without it."""
    name, title = "exploration", "The price of exploration"
    best, likely = shares["best_quality"], shares["most_likely"]
    said = paragraph(
        f"{percent(best['share'])} of the calls went to another model than the feasible one of best predicted quality,"
        f" and {percent(likely['share'])} to another than the one most likely to be drawn."
    )
    if found["cannot_tell"] is not None:
        return section(name, title, said, paragraph(f"Cannot tell the price, because {found['cannot_tell']}."))
    meaning = {
        "greedy": "greedy: always the feasible model of best predicted quality, whatever it costs",
        "most likely model": "always the model most likely to be drawn: the same policy, if it did not explore",
    }
    rows = [
        [
            meaning.get(policy["policy"], policy["policy"]),
            *(
                cell(CANNOT_TELL, brief(metric))
                if metric["difference"] is None
                else estimate_cell(metric["difference"], scale, sign="+")
                for metric, scale in (
                    (policy["metrics"]["quality"], 1.0),
                    (policy["metrics"]["reward"], 1.0),
                    (policy["metrics"]["cost_usd"], 1000.0),
                )
            ),
        ]
        for policy in found["policies"]
    ]
    head = ["without exploration", "quality", "reward", "USD per 1,000"]
    caption = "What the policy without exploration would have yielded, less what was logged"
    why = note(
        "Exploration also pays: what was learned by it is in these policies, and without it they would know less."
    )
    return section(name, title, said, block(None, table(caption, head, rows)), why)


def calibration_section(found: Mapping[str, Any]) -> Markup:
    """Whether models were drawn as often as the logged probabilities say."""
    name, title, test = "calibration", "Are the propensities right?", found["test"]
    if test["p_value"] is None:
        return section(name, title, note("Too few draws were left to chance to test their probabilities."))
    verdict = (
        "this is what right propensities look like"
        if test["p_value"] >= 0.01
        else "right propensities look like this in fewer than one of a hundred logs: off-policy estimates may be wrong"
    )
    said = paragraph(
        f"Over {found['draws']:,} draws, how often each model was drawn differs from its probabilities with χ² ="
        f" {number(test['statistic'], 3)} at {test['degrees']} degrees of freedom, p = {number(test['p_value'], 2)}:"
        f" {verdict}."
    )
    chart = diagonal(
        "calibration",
        "Realised share of draws against logged probability",
        [(row["probability"], Dot(row["realised"], row["low"], row["high"])) for row in found["bins"]],
        ("logged probability", "share drawn"),
    )
    bins = [
        [
            f"{row['above']:g} to {row['up_to']:g}",
            f"{row['pairs']:,}",
            number(row["probability"]),
            number(row["realised"]),
            number(row["z"]["value"], 2),
        ]
        for row in found["bins"]
    ]
    models = [
        [row["model"], f"{row['drawn']:,}", f"{row['expected']:,.1f}", number(row["z"]["value"], 2)]
        for row in found["by_model"]
    ]
    head = ["probability", "models × calls", "mean", "drawn", "z"]
    by_bin = table("By logged probability; z is the excess in standard deviations", head, bins)
    by_model = table("By model", ["model", "drawn", "expected", "z"], models)
    return section(name, title, said, block(chart, by_bin), block(None, by_model))
