"""Which model each conversation is on: what a caller calls a session, hashed, and a bounded memory of those.

A name is hashed with a key of this installation before it is kept or logged, together with its tenant and pool, so that
no two tenants can meet in one session. Knows nothing of utilities: whether to stay is decided elsewhere.
"""

from __future__ import annotations

import os
import secrets
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

__all__ = ["Kept", "Sessions", "installation_key", "session_hash"]

_KEY_BYTES = 32


def session_hash(key: bytes, tenant: str, pool: str, session: str) -> str:
    """16 hex digits that stand for a tenant's session in a pool; nothing leads back from them without `key`."""
    digest = blake2b(key=key, digest_size=8)
    for part in (tenant, pool, session):
        text = part.encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(4, "big"))  # else "ab", "c" would be "a", "bc"
        digest.update(text)
    return digest.hexdigest()


def installation_key(path: Path) -> bytes:
    """The key kept in the file at `path`, made at the first start; readable by its owner only."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = b""
    if len(found) == _KEY_BYTES:
        return found
    made = secrets.token_bytes(_KEY_BYTES)
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return made


@dataclass(frozen=True, slots=True)
class Kept:
    """A session's model, when it last called (unix seconds), and the `experiment/variant` it began in."""

    model: str
    ts: float
    experiment: str | None = None


class Sessions:
    """The sessions of one pool by their hash: at most `limit`, each forgotten after `ttl_s` without a call."""

    def __init__(self, limit: int, ttl_s: float) -> None:
        self._limit, self._ttl_s = limit, ttl_s
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # the longest idle first

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, session: str, now: float) -> Kept | None:
        """What is kept of a session; None for a new or forgotten one."""
        kept = self._kept.get(session)
        return kept if kept is not None and now - kept.ts <= self._ttl_s else None

    def keep(self, session: str, kept: Kept) -> None:
        """A session is on a model now; the longest idle ones make room."""
        self._kept[session] = kept
        self._kept.move_to_end(session)
        while len(self._kept) > self._limit or self._idle(kept.ts):
            self._kept.popitem(last=False)

    def state(self) -> list[list[Any]]:
        """All that is kept, as plain data; `load` is its inverse."""
        return [[session, kept.model, kept.ts, kept.experiment] for session, kept in self._kept.items()]

    def load(self, state: Iterable[list[Any]]) -> None:
        """Take over a state."""
        self._kept.clear()
        for session, model, ts, experiment in state:
            self.keep(session, Kept(model, ts, experiment))

    def _idle(self, now: float) -> bool:
        return now - next(iter(self._kept.values())).ts > self._ttl_s
