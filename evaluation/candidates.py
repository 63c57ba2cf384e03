"""Policies that a log is judged under: the named ones, and functions of a user's own.

A candidate gives the probability of every model for every decision of a chunk, from what was known before each. One
that learns is in `evaluation.learning`. Knows no estimator and no file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bandit.errors import InvalidInput
from bandit.types import FloatArray
from evaluation.logged import LoggedRounds
from evaluation.measures import Measures
from evaluation.rounds import check_distribution

__all__ = ["Candidate", "Stationary", "named", "of_callable"]

NAMES = "logged, uniform, greedy, fixed:MODEL, weighted:MODEL=SHARE,MODEL=SHARE"


class Candidate(Protocol):
    """A policy on trial. `spec` is how the user named it; `measures` how the log is measured under it."""

    @property
    def spec(self) -> str:
        """How the user named it."""
        ...

    @property
    def measures(self) -> Measures:
        """How outcomes are measured under it."""
        ...

    @property
    def learns(self) -> bool:
        """Whether it learns from the log as it goes, and must therefore see all of it in order."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its figures must know."""
        ...

    def probabilities(self, chunk: LoggedRounds) -> FloatArray:
        """Of every model for every decision, shape (n, K). Called once a chunk, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Stationary:
    """A candidate that is one function of contexts and feasible sets."""

    spec: str
    function: Callable[[LoggedRounds], FloatArray]
    measures: Measures
    notes: tuple[str, ...] = ()
    learns: bool = False

    def probabilities(self, chunk: LoggedRounds) -> FloatArray:
        """See `Candidate`."""
        return self.function(chunk)


def named(spec: str, arms: tuple[str, ...], measures: Measures) -> Stationary:
    """A named policy: `logged` (the log itself), `uniform`, `greedy`, `fixed:MODEL`, `weighted:a=70,b=30`.

    `uniform` and `weighted` spread over the models that were feasible (over all where none was); `greedy` takes the
    feasible one of the best quality predicted at the time. Raises InvalidInput for another name or model.
    """
    kind, _, argument = spec.partition(":")
    if kind in ("logged", "uniform", "greedy") and not argument:
        functions = {"logged": lambda chunk: chunk.behaviour, "uniform": _uniform, "greedy": _greedy}
        return Stationary(spec, functions[kind], measures)
    if kind == "fixed" and argument:
        shares = {argument: 1.0}
        return Stationary(spec, _Shares(_vector(shares, arms, spec), within=False), measures)
    if kind == "weighted" and argument:
        return Stationary(spec, _Shares(_vector(_shares(argument, spec), arms, spec), within=True), measures)
    raise InvalidInput("--policy", f"{spec!r} is none of {NAMES}, config:FILE#POOL, python:MODULE:FUNCTION")


def of_callable(spec: str, measures: Measures) -> Stationary:
    """`python:MODULE:FUNCTION`, called as f(contexts (n, d), arms, feasible (n, K)) → probabilities (n, K).

    The module is looked for in the working directory, too. Raises InvalidInput where it cannot be found; what it
    returns is checked, row by row, when it is called.
    """
    _, _, path = spec.partition(":")
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise InvalidInput("--policy", f"{spec!r} must be python:MODULE:FUNCTION")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InvalidInput("--policy", f"{spec!r}: {error}") from None
    if not callable(function):
        raise InvalidInput("--policy", f"{spec!r}: {name} is not callable")

    def checked(chunk: LoggedRounds) -> FloatArray:
        try:
            found = np.asarray(function(chunk.contexts, chunk.arms, chunk.feasible), dtype=np.float64)
        except Exception as error:  # whatever a user's own code raises is the user's to read
            raise InvalidInput("--policy", f"{spec!r} raised {type(error).__name__}: {error}") from error
        if found.shape != chunk.behaviour.shape:
            raise InvalidInput(
                "--policy", f"{spec!r} returned shape {found.shape}; (decisions, models) is {chunk.behaviour.shape}"
            )
        try:
            check_distribution(spec, found)
        except InvalidInput as error:
            raise InvalidInput("--policy", f"{error} (rows of the call; columns are {', '.join(chunk.arms)})") from None
        return found

    return Stationary(spec, checked, measures)


@dataclass(frozen=True, slots=True)
class _Shares:
    """Fixed shares (K,) of every decision, `within` its feasible set or regardless of it."""

    shares: FloatArray
    within: bool

    def __call__(self, chunk: LoggedRounds) -> FloatArray:
        spread = np.broadcast_to(self.shares, chunk.behaviour.shape)
        if not self.within:
            return np.array(spread)
        allowed = spread * chunk.feasible
        total = allowed.sum(axis=1, keepdims=True)
        return np.where(total > 0, allowed / np.where(total > 0, total, 1.0), spread)


def _uniform(chunk: LoggedRounds) -> FloatArray:
    member = chunk.feasible | ~chunk.feasible.any(axis=1, keepdims=True) & (chunk.behaviour > 0)
    return np.asarray(member / member.sum(axis=1, keepdims=True))


def _greedy(chunk: LoggedRounds) -> FloatArray:
    member = chunk.feasible | ~chunk.feasible.any(axis=1, keepdims=True) & (chunk.behaviour > 0)
    best = np.where(member & ~np.isnan(chunk.predicted_quality), chunk.predicted_quality, -np.inf).argmax(axis=1)
    return np.asarray(np.eye(len(chunk.arms))[best])


def _shares(argument: str, spec: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for entry in argument.split(","):
        name, sign, value = entry.rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = np.nan
        if not sign or not name or not share >= 0 or name in shares:
            raise InvalidInput(
                "--policy", f"{spec!r}: {entry!r} is no MODEL=SHARE of its own with a share of at least 0"
            )
        shares[name] = share
    return shares


def _vector(shares: Mapping[str, float], arms: tuple[str, ...], spec: str) -> FloatArray:
    for name in shares:
        if name not in arms:
            raise InvalidInput("--policy", f"{spec!r}: no model is called {name!r}; the log has {', '.join(arms)}")
    vector: Any = np.array([shares.get(name, 0.0) for name in arms])
    if not vector.sum() > 0:
        raise InvalidInput("--policy", f"{spec!r}: one share must be above 0")
    return np.asarray(vector / vector.sum())
