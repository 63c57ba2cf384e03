"""What the demo shows: tables that fit the terminal, and an account of what happened and not of what should have."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, ConsoleDimensions

from evaluation.demo_pool import DEMO_MODELS, Expected, simulated_pool
from evaluation.demo_tally import Episode, Event, Tally
from evaluation.demo_view import Scene, event_line, live_view, progress_line, summary
from evaluation.synthetic import SyntheticSource
from evaluation.traffic import Answered, Failure


def scene(events=(), episode=None, calls=300, failures=0, pool=None):
    """Thirty seconds, ten calls a second, shared by all models in turn."""
    pool = pool or simulated_pool()
    tally = Tally(pool, 0.0)
    models = pool.source.models
    for i in range(calls):
        model, sent_at_s = models[i % len(models)], i / 10
        tally.add(Answered(sent_at_s, sent_at_s + 0.05, "[chat] x", "chat", model, "pm-0", 1.0, 0.001))
    for _ in range(failures):
        tally.add(Failure(1.0, "status 503: no"))
    states = dict.fromkeys(models, "admitted")
    return Scene(pool, tally, states, list(events), episode, 30.0, 60.0)


def printed(renderable_or_scene, width, draw=None):
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    if draw is None:
        summary(renderable_or_scene, console)
    else:
        console.print(draw)
    return out.getvalue()


MOVES = [
    Event(10.0, "oak-medium", "has 69% of the calls"),
    Event(11.0, "oak-medium", "admitted → filtered, change detected", "filtered"),
    Event(20.5, "oak-medium", "filtered → probing, probes comply", "probing"),
    Event(24.0, "oak-medium", "probing → admitted, proved compliant", "admitted"),
]
EPISODE = Episode("oak-medium", 8.0, 10.0, 18.0)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("height", [24, 50])
def test_the_live_view_fits_the_terminal(width, height):
    shown = scene(MOVES * 4, EPISODE)
    text = printed(shown, width, live_view(shown, ConsoleDimensions(width, height)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < height
    for words in ("simulated pool", "30 of 60 s", *shown.pool.source.models, "admitted", "cost"):
        assert words in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_summary_tells_shares_cost_against_the_best_single_model_and_the_episode(width):
    text = printed(scene(MOVES, EPISODE), width)
    flat = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= width
    for words in (
        "300 calls · 10 a second · 0 errors · cost $0.30 (simulated)",
        "limit 0.4 s: kept",
        "Against atlas-large alone on the same calls",
        "Drift (simulated): latency of oak-medium × 8 from 10.0 s until 18.0 s",
        "filtered at 11.0 s, 1.0 s after the jump",
        "probing at 20.5 s, 2.5 s after it recovered",
        "admitted again at 24.0 s, 6.0 s after it recovered",
    ):
        assert words in flat


@pytest.mark.parametrize("width", [80, 100, 120])
def test_long_names_of_models_give_way_to_the_figures(width):
    """Names of a hundred characters are cut; the other columns are not."""
    models = [replace(model, name=f"{model.name}-" + "x" * 90) for model in DEMO_MODELS]
    pool = replace(simulated_pool(), source=SyntheticSource(models), expected=lambda *_: Expected(0.9, 0.001, 0.0))
    shown = scene(calls=60_000, pool=pool)
    for text in (printed(shown, width), printed(shown, width, live_view(shown, ConsoleDimensions(width, 40)))):
        table = [line for line in text.splitlines() if line.startswith(("model", "oak-medium-"))]
        assert len(table) == 2
        assert table[0].count("…") == 0
        assert table[1].count("…") == 1
        assert "admitted" in table[1]


def test_the_summary_says_what_did_not_happen():
    assert "it was not filtered" in printed(scene(MOVES[:1], EPISODE), 80)
    assert "still filtered when the run ended" in printed(scene(MOVES[:2], EPISODE), 80)
    assert "still probing when the run ended" in printed(scene(MOVES[:3], EPISODE), 80)
    never_over = printed(scene(MOVES[:2], Episode("oak-medium", 8.0, 10.0)), 80)
    assert "until the end" in never_over


def test_a_run_without_answers_has_a_summary_too():
    text = printed(scene(calls=0, failures=3), 80)
    assert "No call was answered." in text
    assert "3 errors" in text
    assert "last error: status 503: no" in " ".join(text.split())


def test_lines_for_a_log_hold_time_counts_and_shares():
    line = progress_line(scene())
    assert line.startswith(" 30.0 s  300 calls, 0 errors | ")
    assert "atlas-large 18%" in line  # the last five seconds hold 9 of its calls, of 50
    assert event_line(MOVES[1]) == " 11.0 s  oak-medium: admitted → filtered, change detected"
    assert event_line(Event(1.0, "", "another run")) == "  1.0 s  another run"
