"""What an upstream on trial says: answers that carry their own grade, and the Protocol of their source.

Pure. Knows neither HTTP nor waiting, nor where an answer's figures come from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np

from bandit.errors import InvalidInput
from bandit.types import Price

__all__ = ["Answer", "Origin", "Source", "answer_text", "estimate_tokens", "grade"]

Origin = Literal["recorded", "estimated", "simulated"]

CHARACTERS_PER_TOKEN: Final = 4
MAX_ANSWER_TOKENS: Final = 2_000
"""Text is never longer than about this; usage still reports the recorded tokens."""

_GRADE = re.compile(r"\((?:recorded|estimated|simulated) quality ([0-9.e+-]+)\)")
_WORDS = "the signal box by the river keeps watch while one train after another takes its own track north and "
_FILLER = _WORDS * (MAX_ANSWER_TOKENS * CHARACTERS_PER_TOKEN // len(_WORDS) + 1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model yields for one prompt. `text` carries `quality`, so that a client can grade it.

    `latency_s` is the whole call. `time_to_first_token_s` None: the server takes a fixed share of the
    latency.
    """

    text: str
    quality: float
    latency_s: float
    input_tokens: int
    output_tokens: int
    time_to_first_token_s: float | None = None


class Source(Protocol):
    """Where the answers of a whole pool come from."""

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that may be asked."""
        ...

    @property
    def runs(self) -> tuple[str, ...]:
        """Labels of the runs it can answer from; empty where there is no such thing."""
        ...

    def run_at(self, elapsed_s: float) -> str | None:
        """The run it answers from `elapsed_s` after the start."""
        ...

    def use_run(self, run: str) -> None:
        """Answer from `run` from now on. Raises InvalidInput when there is no such run."""
        ...

    def price(self, model: str) -> Price | None:
        """List price, None when unknown."""
        ...

    def answer(
        self, model: str, prompt_text: str, category: str | None, rng: np.random.Generator, elapsed_s: float
    ) -> Answer:
        """The answer of `model`, `elapsed_s` after the start. Raises UnknownArm when it has none."""
        ...


def grade(answer_text: str) -> float:
    """The quality in [0, 1] that an answer carries, exactly as its source gave it.

    Reads the last such mark in the text. Raises InvalidInput when there is none, as after a broken stream.
    """
    marks = _GRADE.findall(answer_text)
    try:
        quality = float(marks[-1])
    except (IndexError, ValueError):
        raise InvalidInput("answer", "carries no mark such as '(recorded quality 0.8)'") from None
    if not 0.0 <= quality <= 1.0:
        raise InvalidInput("answer", f"carries the quality {quality!r}, which is not in [0, 1]")
    return quality


def answer_text(quality: float, output_tokens: int, origin: Origin) -> str:
    """Plain words of about `output_tokens` tokens that end in the mark `grade` reads."""
    mark = f"({origin} quality {float(quality)!r})"
    room = CHARACTERS_PER_TOKEN * min(output_tokens, MAX_ANSWER_TOKENS) - len(mark) - 1
    if room <= 0:
        return mark
    return f"{_FILLER[:room].rpartition(' ')[0] or _FILLER[:room]}\n{mark}"


def estimate_tokens(text: str) -> int:
    """Tokens of a text nobody counted: a quarter of its characters, at least 1."""
    return max(1, len(text) // CHARACTERS_PER_TOKEN)
