"""Questions to one Valkey server that travel together: those of one turn of the event loop, those asked meanwhile.

Each is one script, and its answer or error is its own. It knows nothing of what scripts do, or of who waits how long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from valkey.exceptions import NoScriptError, ResponseError, ValkeyError

from serving.valkey_line import Line, packed, sha_of

__all__ = ["LOST", "Answer", "Questions", "QuestionsFull"]

LOST: Final = (ValkeyError, OSError, TimeoutError)
"""What an answer fails with; the question may have been done all the same."""

_AT_ONCE: Final = 200  # in one pipeline
_IDLE_S: Final = 1.0  # a connection unused for so long is looked at first: the server may have closed it

Answer = asyncio.Future[Any]


class QuestionsFull(ValkeyError):
    """More questions wait than may: the server is slower than the traffic."""


@dataclass(slots=True)
class _Question:
    """`packed`: as it is sent, by the script's hash; `answer`: None if nobody waits."""

    script: str
    arguments: tuple[str | int | float, ...]
    packed: bytes
    answer: Answer | None

    @property
    def abandoned(self) -> bool:
        return self.answer is not None and self.answer.done()

    def end(self, result: Any) -> None:
        if self.answer is None or self.answer.done():
            return
        if isinstance(result, Exception):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class Questions:
    """Over a connection of its own, made when it is needed as those of `client` are.

    One pipeline is under way at a time, for `timeout_s` at most; `limit` questions wait for it at most.
    """

    def __init__(self, client: Any, timeout_s: float, limit: int) -> None:
        self._line = Line(client)
        self._timeout_s, self._limit = timeout_s, limit
        self._loop = asyncio.get_running_loop()
        self._names: dict[str, str] = {}  # by which the server knows a script
        self._waiting: deque[_Question] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._used_at = 0.0

    def ask(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> Answer:
        """What the script returns, or its error; cancelled before it is sent, it is not. Raises QuestionsFull."""
        answer: Answer = self._loop.create_future()
        self._put(script, (len(keys), *keys, *args), answer)
        return answer

    def tell(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> None:
        """Run it, unless that fails. Raises QuestionsFull."""
        self._put(script, (len(keys), *keys, *args), None)

    async def close(self) -> None:
        """Let what was asked end, and give the connection up; another question makes it anew."""
        while self._sending is not None:
            await asyncio.wait([self._sending])
        await self._line.drop()

    def _put(self, script: str, arguments: tuple[str | int | float, ...], answer: Answer | None) -> None:
        if len(self._waiting) >= self._limit:
            raise QuestionsFull(f"{self._limit} questions wait for the server")
        name = self._names.get(script)
        if name is None:
            name = self._names[script] = sha_of(script)
        self._waiting.append(_Question(script, arguments, packed("EVALSHA", name, *arguments), answer))
        if self._sending is None:  # the task begins in the next turn of the loop, with all that this one asks
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while self._waiting:
                most = min(_AT_ONCE, len(self._waiting))
                together = [self._waiting.popleft() for _ in range(most)]
                together = [question for question in together if not question.abandoned]
                if together:
                    await self._together(together)
        finally:
            self._sending = None

    async def _together(self, questions: Sequence[_Question]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._loop.time() - self._used_at >= _IDLE_S:
                    await self._line.look()
                unknown = await self._exchange(questions, [question.packed for question in questions])
                if unknown:  # the first time, or the server was started anew or made to forget
                    texts = [packed("EVAL", each.script, *each.arguments) for each in unknown]
                    await self._exchange(unknown, texts)
        except LOST as error:
            await self._line.drop()
            for question in questions:
                question.end(error)
        self._used_at = self._loop.time()

    async def _exchange(self, questions: Sequence[_Question], commands: Sequence[bytes]) -> list[_Question]:
        """Send them, and end each that is answered; returns those whose script the server does not know."""
        unknown: list[_Question] = []
        await self._line.send(b"".join(commands))
        for question in questions:
            try:
                question.end(await self._line.answer())
            except NoScriptError:
                unknown.append(question)
            except ResponseError as error:
                question.end(error)
        return unknown
