"""Offline work: recorded and simulated upstreams, suites and grading, replay, estimators, reports.

Builds on `bandit`; never imports `serving`, and `serving` never imports it (the command line may start
either).
"""

from __future__ import annotations

from evaluation.answers import Answer, Source, grade
from evaluation.recorded import RecordedSet

__all__ = ["Answer", "RecordedSet", "Source", "grade"]
