"""What processes hear of one another over a connection that something on the way has forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from serving import valkey_presence
from serving.valkey_store import ValkeyStore


class Forgetful:
    """Forwards a socket, and can forget who listens over it: nothing comes through any more, and nothing is closed."""

    def __init__(self, target: Path, path: Path) -> None:
        self.target, self.path, self.url = target, path, f"unix://{path}"
        self._listening: set[object] = set()
        self._forgotten: set[object] = set()

    def forget(self) -> None:
        self._forgotten |= self._listening

    @contextlib.asynccontextmanager
    async def running(self):
        async with await asyncio.start_unix_server(self._serve, self.path):
            yield self

    async def _serve(self, reader, writer):
        upstream, to_upstream = await asyncio.open_unix_connection(self.target)
        line, both = object(), ((reader, to_upstream), (upstream, writer))
        await asyncio.wait([asyncio.create_task(self._forward(*way, line)) for way in both])

    async def _forward(self, source, sink, line):
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if b"SUBSCRIBE" in data:
                    self._listening.add(line)
                if line not in self._forgotten:
                    sink.write(data)
                    await sink.drain()
        sink.close()


async def test_who_listens_over_a_connection_that_was_forgotten_hears_again(
    valkey_server, tmp_path, loop_thread, monkeypatch
):
    monkeypatch.setattr(valkey_presence, "_LISTEN_S", 0.1)
    monkeypatch.setattr(valkey_presence, "_SILENCE_S", 0.5)
    with loop_thread.entered(Forgetful(valkey_server.path, tmp_path / "p").running()) as proxy:
        listener, heard = ValkeyStore(proxy.url, name=tmp_path.name), []
        speaker = ValkeyStore(valkey_server.url, name=tmp_path.name)
        listener.subscribe("word", heard.append)

        async def said(word):
            async with asyncio.timeout(10):
                while word not in heard:
                    speaker.publish("word", word)
                    await asyncio.sleep(0.02)

        await said(b"before")
        await asyncio.sleep(1)  # in which nobody says anything: the server does, when it is asked
        await said(b"still")
        proxy.forget()
        await said(b"after")
        await listener.close()
        await speaker.close()
