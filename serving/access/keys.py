"""The keys there are: those of the configuration, and those made, rotated and revoked while the service runs.

A fold over the log's changes of subject `keys`. Keeps SHA-256 digests, never a key: a key made here has 256 random
bits, so there is nothing to guess that a slow hash would make slower. What a tier may use is not known here.
"""

from __future__ import annotations

import heapq
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from serving.access.principal import Principal

if TYPE_CHECKING:
    from bandit.types import Feedback, Outcome
    from serving.access.settings import KeySettings
    from serving.records import Record

__all__ = ["Key", "KeyRing", "digest_of", "new_secret"]

_PREFIX: Final = "pm-key-"
_SHOWN: Final = len(_PREFIX) + 4  # of a secret, in lists: enough to tell one's keys apart, 24 of 256 bits
_MOST_SECRETS: Final = 4  # of one key that are valid at a time, in rotations whose grace overlaps
_KEPT_S: Final = 90 * 86_400.0  # how long a key that is over is still listed
_USED_WITHIN_S: Final = 60.0  # how finely its last use is known
Row = Mapping[str, Any]


def digest_of(key: str) -> bytes:
    """The SHA-256 of a key as it was sent."""
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def new_secret() -> str:
    """A secret nobody has seen: `pm-key-` and 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


@dataclass(frozen=True, slots=True)
class Key:
    """A key made while the service runs, without its secret. Times in unix seconds; `allow` None: all its tier may."""

    id: str
    name: str | None
    user: str
    team: str | None
    tier: str | None
    allow: tuple[str, ...] | None
    prefix: str
    made_at: float
    expires_at: float | None
    rotated_at: float | None = None
    revoked_at: float | None = None
    # (digest, until when it is valid; None: as long as the key), the newest first.
    digests: tuple[tuple[bytes, float | None], ...] = field(default=(), repr=False)

    @classmethod
    def made(cls, secret: str, now: float, **whose: Any) -> Key:
        """A new key for `whose` (name, user, team, tier, allow, expires_at), whose secret is `secret`."""
        key_id = f"key-{secrets.token_hex(6)}"
        return cls(id=key_id, prefix=f"{secret[:_SHOWN]}…", made_at=now, digests=((digest_of(secret), None),), **whose)

    def rotated(self, secret: str, now: float, grace_s: float) -> Key:
        """The key with a new secret; older ones are valid for `grace_s` more seconds at most."""
        until = now + grace_s
        older = [(digest, min(until, end or until)) for digest, end in self.digests]
        alive = [entry for entry in older if entry[1] > now][: _MOST_SECRETS - 1]
        digests = ((digest_of(secret), None), *alive)
        return replace(self, prefix=f"{secret[:_SHOWN]}…", rotated_at=now, digests=digests)

    def revoked(self, now: float) -> Key:
        """The key as no longer valid: its digests are gone."""
        return replace(self, revoked_at=now, digests=())

    def ended_at(self) -> float | None:
        """When it ceases or ceased to be valid; None: it does not."""
        return self.expires_at if self.revoked_at is None else self.revoked_at

    def public(self) -> dict[str, Any]:
        """All of it that may be seen, as JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "digests"}

    def private(self) -> list[list[Any]]:
        """Its digests as JSON, for the operational store alone."""
        return [[digest.hex(), until] for digest, until in self.digests]

    @classmethod
    def load(cls, public: Mapping[str, Any], private: Sequence[Sequence[Any]]) -> Key:
        """The key of what `public` and `private` gave."""
        allow = public.get("allow")
        known = {f.name for f in fields(cls)} - {"digests", "allow"}
        digests = tuple((bytes.fromhex(digest), until) for digest, until in private)
        return cls(
            **{name: value for name, value in public.items() if name in known},
            allow=None if allow is None else tuple(allow),
            digests=digests,
        )


class KeyRing:
    """Maps digests to principals. `changed` alone changes which there are, live and in a replay."""

    subject = "keys"

    def __init__(self, configured: Sequence[KeySettings] = ()) -> None:
        self.configure(configured)
        self._keys: dict[str, Key] = {}
        self._by_digest: dict[bytes, str] = {}
        self._ends: list[tuple[float, str]] = []  # a heap: a look at every key for every change takes 10 ms at 100,000
        self._used_at: dict[str, float] = {}  # in memory: a write for every call would be a high price

    def configure(self, configured: Sequence[KeySettings]) -> None:
        """Have these keys of the configuration from now on, and no others of it."""
        self._configured: dict[bytes, tuple[Principal, tuple[str, ...] | None]] = {}
        for entry in configured:
            digest = digest_of(entry.key.get_secret_value())
            principal = Principal(entry.user, entry.team, entry.tier, _public_id(digest))
            self._configured[digest] = (principal, entry.allow)
        self._allowed = {p.key_id: allow for p, allow in self._configured.values()}

    def find(self, digest: bytes, now: float) -> Principal | None:
        """Whom the key with this digest stands for at `now`; None: nobody, or it is over.

        A look-up by digest tells by its time nothing about how much of a guessed key was right.
        """
        configured = self._configured.get(digest)
        if configured is not None:
            self._note_use(configured[0].key_id or "", now)
            return configured[0]
        found = self._by_digest.get(digest)
        if found is None:
            return None
        key = self._keys[found]
        known = any(hmac.compare_digest(digest, own) and (end is None or now < end) for own, end in key.digests)
        if not known or (key.expires_at is not None and now >= key.expires_at):
            return None
        self._note_use(key.id, now)
        return Principal(key.user, key.team, key.tier, key.id)

    def allowed(self, key_id: str | None) -> tuple[str, ...] | None:
        """The names that a key's own list allows; None: it has none."""
        key = None if key_id is None else self._keys.get(key_id)
        return self._allowed.get(key_id) if key is None else key.allow

    def get(self, key_id: str) -> Key | None:
        """A key made while the service runs."""
        return self._keys.get(key_id)

    @property
    def configured_ids(self) -> list[str]:
        """Ids of the configuration's keys."""
        return [principal.key_id or "" for principal, _ in self._configured.values()]

    def valid_count(self, now: float) -> int:
        """How many of the keys made while the service runs are not over."""
        return sum(_valid(key, now) for key in self._keys.values())

    def listed(self, now: float) -> list[dict[str, Any]]:
        """Every key, without any secret."""
        configured = [
            {
                "id": principal.key_id,
                "source": "configuration",
                "state": "valid",
                "user": principal.user,
                "team": principal.team,
                "tier": principal.tier,
                "allow": allow,
                "last_used_at": self._used_at.get(principal.key_id or ""),
            }
            for principal, allow in self._configured.values()
        ]
        return configured + [self.entry(key, now) for key in self._keys.values()]

    def entry(self, key: Key, now: float) -> dict[str, Any]:
        """What is shown of a key."""
        state = "valid" if _valid(key, now) else "expired" if key.revoked_at is None else "revoked"
        graces = [until for _, until in key.digests if until is not None and until > now]
        return {
            **key.public(),
            "source": "runtime",
            "state": state,
            "old_secret_until": max(graces, default=None),
            "last_used_at": self._used_at.get(key.id),
        }

    def changed(self, row: Row) -> None:
        """A key was made, rotated or revoked."""
        self._put(Key.load(row["after"], row.get("secrets", ())))
        kept_from = row["ts"] - _KEPT_S
        while self._ends and self._ends[0][0] < kept_from:
            key = self._keys.get(heapq.heappop(self._ends)[1])
            if key is not None and (key.ended_at() or kept_from) < kept_from:  # else it ends later than it was to
                self._drop(key)

    def decided(self, record: Record) -> None:
        """A call was made with a key, at this worker or another."""
        key_id = record.labels.principal.key_id
        if key_id is not None and (key_id in self._keys or key_id in self._allowed):
            self._note_use(key_id, record.decision.ts)

    def outcome(self, record: Record, outcome: Outcome) -> Sequence[Row]:
        """Outcomes change no key."""
        del record, outcome
        return ()

    def feedback(self, record: Record, feedback: Feedback) -> Sequence[Row]:
        """Feedback changes no key."""
        del record, feedback
        return ()

    def state(self) -> dict[str, Any]:
        """All keys made while the service runs, for a snapshot in the operational store."""
        return {"keys": [{"public": key.public(), "secrets": key.private()} for key in self._keys.values()]}

    def load(self, state: Mapping[str, Any]) -> None:
        """Be what `state` says."""
        self._keys, self._by_digest, self._ends = {}, {}, []
        for entry in state["keys"]:
            self._put(Key.load(entry["public"], entry["secrets"]))

    def _put(self, key: Key) -> None:
        old = self._keys.get(key.id)
        if old is not None:
            self._forget_digests(old)
        self._keys[key.id] = key
        if (end := key.ended_at()) is not None:
            heapq.heappush(self._ends, (end, key.id))
        for digest, _ in key.digests:
            self._by_digest[digest] = key.id

    def _drop(self, key: Key) -> None:
        self._forget_digests(key)
        self._used_at.pop(key.id, None)
        del self._keys[key.id]

    def _forget_digests(self, key: Key) -> None:
        for digest, _ in key.digests:
            self._by_digest.pop(digest, None)

    def _note_use(self, key_id: str, now: float) -> None:
        self._used_at[key_id] = now // _USED_WITHIN_S * _USED_WITHIN_S


def _valid(key: Key, now: float) -> bool:
    end = key.ended_at()
    return end is None or (key.revoked_at is None and now < end)


def _public_id(digest: bytes) -> str:
    """The id of a configured key, the same after every restart; not a part of the digest that finds it."""
    return f"cfg-{sha256(b'pointsman key id' + digest).hexdigest()[:12]}"
