"""What may not be judged changes no estimate, wherever in a log it stands."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hand_made_log import HandMadeLog
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.candidates import named
from evaluation.judgement import Standards
from evaluation.logs import opened
from evaluation.measures import Measures
from evaluation.replay import replay
from evaluation.selection import SelectedRounds, Selection

law = settings(max_examples=12, deadline=None, derandomize=True, database=None)
JUDGED = st.fixed_dictionaries(
    {
        "chosen": st.sampled_from("ab"),
        "mode": st.sampled_from(["bandit", "weighted", "canary"]),
        "share": st.sampled_from([0.05, 0.3, 0.5, 0.9]),
        "quality": st.sampled_from([None, 0.0, 0.5, 1.0]),
    }
)
UNJUDGED = st.fixed_dictionaries(
    {
        "chosen": st.sampled_from("ab"),
        "kind": st.sampled_from(
            [
                {"mode": "cached", "origin": "d0"},
                {"mode": "sticky", "session": "f" * 16},
                {"mode": "shadow", "origin": "d0"},
                {"mode": "pinned", "pool": "a"},
                {"mode": "weighted", "experiment": "tone/a"},
                {"mode": "bandit", "experiment": "tone/b"},
                {"mode": "weighted", "context": [], "context_version": "none"},
            ]
        ),
        "quality": st.sampled_from([None, 0.0, 1.0]),
    }
)


def estimates(rows):
    with tempfile.TemporaryDirectory() as folder:
        log = HandMadeLog(Path(folder) / "log.duckdb")
        for row in rows:
            more = row.get("kind", {"mode": row.get("mode")})
            share = row.get("share", 1.0)
            feedback = [] if row["quality"] is None else [(row["quality"], {})]
            p = {row["chosen"]: share, "b" if row["chosen"] == "a" else "a": 1.0 - share}
            log.call(row["chosen"], p=dict(sorted(p.items())), feedback=feedback, **more)
        with opened([log.write()]) as source:
            rounds = SelectedRounds(source, Selection("auto"))
            some = [named(spec, rounds.arms, Measures(latency_limit_s=0.5)) for spec in ("fixed:a", "uniform")]
            return replay(rounds, some, Standards(min_effective_samples=0.1, replicates=20))


@given(st.lists(JUDGED, min_size=3, max_size=8), st.lists(st.tuples(st.integers(0, 8), UNJUDGED), max_size=8))
@law
def test_what_may_not_be_judged_changes_no_estimate(judged, others):
    mixed = list(judged)
    for place, row in others:
        mixed.insert(min(place, len(mixed)), row)
    assert estimates(mixed) == estimates(judged)
