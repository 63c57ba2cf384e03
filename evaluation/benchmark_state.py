"""The state of one run of `evaluate`, as a file of JSON lines: what was answered, what the service has acknowledged.

Appended and flushed line by line, so that a killed run loses nothing it was answered. Never sends anything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Self

import orjson

from bandit.errors import InvalidInput

__all__ = ["Key", "Result", "RunHeader", "StateFile", "state_path"]

VERSION: Final = 1
_HEADER_START: Final = b'{"kind":"run"'
Key = tuple[str, str]
"""(model, item_id)"""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one item with one model.

    graded: `quality`. failed: no answer, `error` is a code. ungraded: an answer that could not be graded (`error`); it
    is kept in `message`, so that grading can be tried again without asking again. `cost_usd` is None where unknown;
    `judge_cost_usd` is the part a judge took, not in it.
    """

    model: str
    item_id: str
    category: str | None
    status: Literal["graded", "failed", "ungraded"]
    quality: float | None = None
    error: str | None = None
    reason: str = ""
    latency_s: float | None = None
    cost_usd: float | None = None
    judge_cost_usd: float = 0.0
    input_tokens: int | None = None
    output_tokens: int | None = None
    message: dict[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return self.model, self.item_id

    @property
    def known_cost_usd(self) -> float:
        """All it is known to have cost, judging included."""
        return (self.cost_usd or 0.0) + self.judge_cost_usd

    def to_post(self) -> dict[str, Any]:
        """As `POST /admin/benchmarks` takes it."""
        told = ("model", "item_id", "category", "latency_s", "cost_usd", "input_tokens", "output_tokens", "error")
        entry = {name: getattr(self, name) for name in told}
        return entry | ({"quality": self.quality} if self.status == "graded" else {})


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What a run is of; a run is resumed only where all but `run` and `started_ts` is the same."""

    run: str
    started_ts: float
    url: str
    suite: str
    suite_digest: str
    models: tuple[str, ...]
    sample: int | None
    seed: int

    def differences(self, other: RunHeader) -> list[str]:
        """What `other` has otherwise, in words."""
        mine, its = asdict(self), asdict(other)
        told = {"suite_digest": "the suite's content"}
        return [
            f"{told.get(name, name)} (was {_shown(its[name])}, is {_shown(mine[name])})"
            for name in mine
            if name not in ("run", "started_ts") and mine[name] != its[name]
        ]


class StateFile:
    """The results of one run, in memory and in its file; a context that holds the file for this process alone."""

    def __init__(self, path: Path, file: BinaryIO, header: RunHeader) -> None:
        self.path, self.header = path, header
        self.results: dict[Key, Result] = {}
        self.posted: set[Key] = set()
        self.finished = False
        self._file = file

    @classmethod
    def open(cls, path: Path, header: RunHeader, *, resume: bool, restart: bool) -> StateFile:
        """The state to go on with: a fresh one, or, to resume, what is there.

        Raises InvalidInput where the file belongs to an unfinished run and neither is wanted, where it is of another
        suite or other models, where it is no such file at all, or where it is in use.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("r+b" if path.exists() else "x+b")
        except OSError as error:
            message = f"the run's state cannot be kept there ({error.strerror}); give another place by --state"
            raise InvalidInput(str(path), message) from None
        try:
            _lock(file, path)
            before = cls._read(path, file)
            if before is not None and resume and not restart:
                differences = header.differences(before.header)
                if differences:
                    message = (
                        f"is of another run: {'; '.join(differences)}. Give the same, or start anew with --restart"
                    )
                    raise InvalidInput(str(path), message)  # noqa: TRY301 - the file is closed below
                return before
            if before is not None and before.results and not (before.finished or restart):
                message = f"holds an unfinished run with {len(before.results)} results: go on with it by --resume, or"
                raise InvalidInput(str(path), f"{message} drop it by --restart")  # noqa: TRY301
            file.seek(0)
            file.truncate()
            state = cls(path, file, header)
            state._append({"kind": "run", "version": VERSION, **asdict(header)})
        except BaseException:
            file.close()
            raise
        return state

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, result: Result) -> None:
        """Keep a result; a later one of the same model and item takes its place."""
        self._append({"kind": "result", **asdict(result)})
        self.results[result.key] = result

    def add_posted(self, keys: Sequence[Key]) -> None:
        """These results are the service's now, durably."""
        self._append({"kind": "posted", "keys": keys})
        self.posted.update(keys)

    def finish(self) -> None:
        """Nothing is left to do for this run."""
        if not self.finished:
            self._append({"kind": "finished"})
            self.finished = True

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    @classmethod
    def _read(cls, path: Path, file: BinaryIO) -> StateFile | None:
        """What the file holds; None where it is empty. A last line that was not written whole is cut off."""
        data = file.read()
        *lines, torn = data.split(b"\n")
        state: StateFile | None = None
        for number, line in enumerate(lines, start=1):
            try:
                state = cls._taken(state, orjson.loads(line), path, file)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                message = f"line {number} is not of a state of evaluate; give another --state"
                raise InvalidInput(str(path), message) from error
        if state is None and not torn.startswith(_HEADER_START[: len(torn)]):
            raise InvalidInput(str(path), "is not a state of evaluate; give another --state")
        file.seek(len(data) - len(torn))
        file.truncate()
        return state

    @classmethod
    def _taken(cls, state: StateFile | None, entry: Any, path: Path, file: BinaryIO) -> StateFile:
        kind = entry.pop("kind")
        if state is None:
            if kind != "run" or entry.pop("version") != VERSION:
                raise ValueError(kind)
            return cls(path, file, RunHeader(**entry | {"models": tuple(entry["models"])}))
        if kind == "result":
            result = Result(**entry)
            state.results[result.key] = result
        elif kind == "posted":
            state.posted.update((model, item_id) for model, item_id in entry["keys"])
        elif kind == "finished":
            state.finished = True
        else:
            raise ValueError(kind)
        return state


def state_path(suite: Path, url: str) -> Path:
    """Where the state is kept by default: beside the suite, a name for each service."""
    place = suite.resolve()
    stem = place.name if place.is_dir() else place.stem
    return place.parent / f"{stem}.{sha256(url.encode()).hexdigest()[:8]}.evaluate"


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InvalidInput(str(path), f"is in use by another evaluate (this one is process {os.getpid()})") from None


def _shown(value: Any) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else text[:80] + "…"
