"""Graders that look at an answer's words: exact, choice, regex, contains, recorded.

Pure, and bounded in time on any text: the patterns here are linear, those of a suite have a time limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from bandit.errors import InvalidInput
from evaluation import answers
from evaluation.grades import Grade, GraderOptions, Grading, GradingFailed, Message

__all__ = ["Choice", "Contains", "Exact", "Recorded", "Regex", "pattern_finder"]

PATTERN_LIMIT_S: Final = 1.0
"""Time that a suite's own pattern gets for one answer; some patterns would take hours on some texts."""
_CHOICE_TAIL: Final = 20_000
_MARKUP: Final = "*_`$()[]{}.:;,!\"' \t\r\n"
_SHOWN: Final = 60
_AFTER: Final = r"(?:because|since|as|for|due|which|and|but|or)\b"  # these may follow a letter A or I, other words not


class Exact(GraderOptions):
    """The whole text, without the space around it, is the answer (or one of several)."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = False

    def prepare(self, answer: Any) -> Grading:
        """`answer`: a text or number, or a list of acceptable ones."""
        fold = _fold(self.ignore_case)
        wanted = {fold(text.strip()) for text in _texts(answer)}
        return lambda message: Grade.of(
            fold(message.text.strip()) in wanted, f"answered {_shown(message.text.strip())}"
        )


class Contains(GraderOptions):
    """The text contains all of the answer's texts, or any of them."""

    kind: Literal["contains"] = "contains"
    match: Literal["all", "any"] = "all"
    ignore_case: bool = False

    def prepare(self, answer: Any) -> Grading:
        """`answer`: a text or a list of texts."""
        fold = _fold(self.ignore_case)
        wanted = [fold(text) for text in _texts(answer)]
        if not all(wanted):
            raise InvalidInput("answer", "must hold no empty text: every answer contains it")
        enough = 1 if self.match == "any" else len(wanted)

        def graded(message: Message) -> Grade:
            text = fold(message.text)
            missing = [part for part in wanted if part not in text]
            good = len(wanted) - len(missing) >= enough
            return Grade.of(good, "found" if good else f"without {_shown(missing[0])}")

        return graded


class Regex(GraderOptions):
    """The text matches a pattern: the answer is the pattern, or what `pattern` finds last must be the answer."""

    kind: Literal["regex"] = "regex"
    pattern: str | None = None
    ignore_case: bool = False
    full: bool = False

    def prepare(self, answer: Any) -> Grading:
        """`answer`: a pattern; with `pattern`, the text that its last match (its first group, if any) shall be."""
        if self.pattern is None:
            if not isinstance(answer, str):
                raise InvalidInput("answer", "must be the pattern, a text")
            find = pattern_finder("answer", answer, ignore_case=self.ignore_case, full=self.full)
            return lambda message: Grade.of(find(message.text) is not None, "searched")
        find = pattern_finder("grader.pattern", self.pattern, ignore_case=self.ignore_case, full=self.full)
        fold = _fold(self.ignore_case)
        wanted = {fold(text.strip()) for text in _texts(answer)}

        def graded(message: Message) -> Grade:
            found = find(message.text)
            if found is None:
                return Grade.of(good=False, reason="the pattern is not found")
            return Grade.of(fold(found.strip()) in wanted, f"found {_shown(found)}")

        return graded


class Choice(GraderOptions):
    r"""The letter of a choice: the first of these that there is, and of several the last.

    1. the whole text is one letter, with or without marks such as `**C**` or `(c)`;
    2. a statement: `\boxed{C}`, "answer is (C)", "Answer: C", "option C" (A and I only where no word follows them);
    3. a letter in parentheses, brackets or bold;
    4. a letter that begins a line, as in "C) Paris" or "C. Paris", or is all of it;
    5. a letter that ends the text, as in "so it must be C.", but no unit as in "12 A".
    """

    kind: Literal["choice"] = "choice"
    letters: str = Field(default="ABCDEFGHIJ", pattern="^[A-Z]{2,26}$")

    def prepare(self, answer: Any) -> Grading:
        """`answer`: a letter, or a list of acceptable ones."""
        wanted = {text.strip(_MARKUP).upper() for text in _texts(answer)}
        for letter in wanted:
            if len(letter) != 1 or letter not in self.letters:
                raise InvalidInput("answer", f"must be one letter of {self.letters}, not {_shown(letter)}")
        rules = _choice_rules(self.letters)

        def graded(message: Message) -> Grade:
            letter = _chosen(message.text[-_CHOICE_TAIL:], self.letters, rules)
            if letter is None:
                return Grade.of(good=False, reason="states no choice")
            return Grade.of(letter in wanted, f"chose {letter}")

        return graded


class Recorded(GraderOptions):
    """The grade that answers of this project's trial upstreams carry."""

    kind: Literal["recorded"] = "recorded"
    needs_answer: ClassVar[bool] = False

    def prepare(self, answer: Any) -> Grading:
        """`answer` is not looked at."""
        del answer

        def graded(message: Message) -> Grade:
            text = message.text or " ".join(call.arguments for call in message.tool_calls)
            try:
                return Grade(answers.grade(text), "as recorded")
            except InvalidInput as error:
                raise GradingFailed(f"the {error}; the grader recorded is for answers of trial upstreams") from None

        return graded


def pattern_finder(
    field: str, pattern: str, *, ignore_case: bool = False, full: bool = False
) -> Callable[[str], str | None]:
    """What finds the last match (its first group where there is one) within PATTERN_LIMIT_S; None: there is none.

    Raises InvalidInput for a pattern that is none; the finder raises GradingFailed when its time is over.
    """
    try:
        import regex
    except ImportError:
        message = "patterns need the package regex, for its time limit: pip install 'pointsman[evaluation]'"
        raise InvalidInput(field, message) from None
    try:
        compiled = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except (regex.error, RecursionError, OverflowError) as error:
        raise InvalidInput(field, f"is not a valid pattern: {error}") from None

    def find(text: str) -> str | None:
        try:
            if full:
                last = compiled.fullmatch(text.strip(), timeout=PATTERN_LIMIT_S)
            else:
                last = None
                for last in compiled.finditer(text, timeout=PATTERN_LIMIT_S):  # noqa: B007 - the last is wanted
                    pass
        except TimeoutError:
            raise GradingFailed(f"the pattern {_shown(pattern)} takes more than {PATTERN_LIMIT_S:g} s") from None
        return None if last is None else str(last[1 if compiled.groups else 0] or "")

    return find


def _choice_rules(letters: str) -> tuple[re.Pattern[str], ...]:
    """Rules 2 to 5, in order; each finds the letter in some group."""
    one, words = f"[{letters}]", f"[{''.join(set(letters) - {'A', 'I'}) or letters}]"
    alone = rf"[{''.join(set(letters) & {'A', 'I'}) or letters}](?![ \t]+(?!{_AFTER})[A-Za-z])"
    letter = rf"({words}|{alone})(?![\w'’]|\.\w)"
    return (
        re.compile(
            rf"\\boxed\{{[^A-Za-z0-9}}]{{0,5}}(?:\\text\w{{0,4}}\{{)?[^A-Za-z0-9}}]{{0,5}}([{letters}{letters.lower()}])\W"
            rf"|\b(?:answer|choice|option)\b[^A-Za-z0-9]{{0,10}}"
            rf"(?:(?:is|was|are|would be|should be|must be)\b[^A-Za-z0-9]{{0,10}})?"
            rf"(?:(?:option|choice)\b[^A-Za-z0-9]{{0,10}})?{letter}",
            re.IGNORECASE,
        ),
        re.compile(rf"[(\[]({one})[)\]]|\*\*\(?({one})[).:]?\*\*"),
        re.compile(rf"^[ \t*>-]{{0,8}}({one})(?:[).:]|[ \t*]{{0,8}}$)", re.MULTILINE),
        re.compile(rf"(?<![\w'’.])(?<!\d )({one})[^\w]{{0,8}}\Z"),
    )


def _chosen(text: str, letters: str, rules: tuple[re.Pattern[str], ...]) -> str | None:
    whole = text.strip(_MARKUP).upper()
    if len(whole) == 1 and whole in letters:
        return whole
    for rule in rules:
        found: str | None = None
        for match in rule.finditer(text):
            found = next((group for group in match.groups() if group), found)
        if found is not None:
            return found.upper()
    return None


def _texts(answer: Any) -> list[str]:
    entries = answer if isinstance(answer, list) else [answer]
    if not entries or not all(
        isinstance(entry, str | int | float) and not isinstance(entry, bool) for entry in entries
    ):
        raise InvalidInput("answer", "must be a text or number, or a list of them that is not empty")
    return [str(entry) for entry in entries]


def _fold(ignore_case: bool) -> Callable[[str], str]:  # noqa: FBT001 - the option
    return str.casefold if ignore_case else str


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
