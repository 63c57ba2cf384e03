"""One connection to a Valkey server, for who asks it often: without the client's layers, and packed by its C parser.

It sets no limit in time: whoever asks does. It knows nothing of what is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import libvalkey
from valkey.exceptions import NoScriptError, ValkeyError

__all__ = ["Line", "packed", "sha_of"]

_LOST = (ValkeyError, OSError, TimeoutError)


class Line:
    """A connection as those of the asynchronous `client` are, made when it is needed, and again when it was lost."""

    def __init__(self, client: Any) -> None:
        pool = client.connection_pool
        # With a limit of the client's own each command starts a task, and in it a cancellation can get lost.
        self._connection = pool.connection_class(**pool.connection_kwargs | {"socket_timeout": None})

    async def ask(self, *command: Any) -> Any:
        """The answer to one command, as it came; one at a time."""
        await self.send(packed(*command))
        return await self.answer()

    def script(self, text: str, *keys: str) -> Callable[[Sequence[Any]], Coroutine[Any, Any, Any]]:
        """Runs by its hash, with these keys and the arguments it is called with."""
        sha = sha_of(text)

        async def run(arguments: Sequence[Any]) -> Any:
            try:
                return await self.ask("EVALSHA", sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return await self.ask("EVAL", text, len(keys), *keys, *arguments)

        return run

    async def send(self, commands: bytes) -> None:
        """Send what `packed` made, of one command or many; `answer` then gives one answer after the other."""
        await self._connection.send_packed_command(commands)

    async def answer(self) -> Any:
        """The next answer; raises it if it is an error, and gives the connection up for any other trouble."""
        return await self._connection.read_response()

    async def look(self) -> None:
        """Give the connection up if the server has closed it, or has said what nobody asked for."""
        if self._connection.is_connected:
            try:
                stale = await self._connection.can_read_destructive()
            except _LOST:
                stale = True
            if stale:
                await self.drop()

    async def drop(self) -> None:
        """Give the connection up."""
        with suppress(*_LOST):
            await self._connection.disconnect(nowait=True)


def packed(*command: Any) -> bytes:
    """One command as it is sent."""
    return bytes(libvalkey.pack_command(command))


def sha_of(script: str) -> str:
    """By which the server knows a script."""
    return hashlib.sha1(script.encode()).hexdigest()  # noqa: S324 - it is the server's choice
