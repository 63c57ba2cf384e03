"""What operators do to keys while the service runs: make one, list them, rotate one, revoke one.

Checks a change whole before it is made; a secret is in the answer that made it and nowhere else. Knows nothing of HTTP,
nor of who may ask; which keys there are is the key ring's to know, and that a change lasts is the learner's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import AfterValidator, Field, TypeAdapter

from serving.access.keys import Key, KeyRing, new_secret
from serving.bodies import Body, Seconds, validated
from serving.errors import Conflict, InvalidFields, UnknownKey

if TYPE_CHECKING:
    from serving.access.settings import AuthSettings, TierSettings

__all__ = ["KeyDesk", "KeyRotation", "NewKey"]

_MOST_NAMES = 1_000
_MOST_GRACE_S = 30 * 86_400.0
_DEFAULT_GRACE_S = 3_600.0


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must have no control characters")
    return value


_Label = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]


class NewKey(Body):
    """The body of `POST /admin/keys`."""

    user: _Label
    team: _Label | None = None
    tier: _Label | None = None
    name: _Label | None = None
    expires_at: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] | None = None
    allow: Annotated[list[_Label], Field(max_length=_MOST_NAMES)] | None = None


class KeyRotation(Body):
    """The body of `POST /admin/keys/{id}/rotate`."""

    grace_s: Annotated[Seconds, Field(le=_MOST_GRACE_S)] = _DEFAULT_GRACE_S


_wanted, _rotation = TypeAdapter(NewKey), TypeAdapter(KeyRotation)


class Changes(Protocol):
    """What logs and applies change rows: the learner."""

    def change(self, rows: Sequence[Mapping[str, Any]]) -> asyncio.Future[None]:
        """Log and apply; the future resolves once it is durable."""


class KeyDesk:
    """Makes, lists, rotates and revokes keys. `known`: the pools and models there are now; `clock`: unix seconds."""

    def __init__(
        self,
        auth: AuthSettings | None,
        tiers: Sequence[TierSettings],
        ring: KeyRing,
        changes: Changes,
        *,
        known: Callable[[], Collection[str]],
        clock: Callable[[], float],
    ) -> None:
        self._auth, self._ring, self._changes, self._known, self._clock = auth, ring, changes, known, clock
        self._tiers = [tier.name for tier in tiers]
        self._aliases = {name for tier in tiers for name in tier.pools}

    def listed(self) -> list[dict[str, Any]]:
        """Every key, the configuration's first; never a secret, nor a digest."""
        return self._ring.listed(self._clock())

    async def create(self, body: Any, by: str | None) -> dict[str, Any]:
        """A new key with its secret, durable on return. Raises InvalidFields and Conflict."""
        wanted: NewKey = validated(_wanted, body)
        now = self._clock()
        self._check(wanted, now)
        secret = new_secret()
        whose = wanted.model_dump() | {"allow": None if wanted.allow is None else tuple(wanted.allow)}
        key = Key.made(secret, now, **whose)
        await self._change("created", None, key, now, by)
        return self._ring.entry(key, now) | {"secret": secret}

    async def rotate(self, key_id: str, body: Any, by: str | None) -> dict[str, Any]:
        """The key with its new secret, durable on return. Raises InvalidFields, UnknownKey, Conflict."""
        rotation: KeyRotation = validated(_rotation, body)
        key, now = self._own(key_id), self._clock()
        end = key.ended_at()
        if end is not None and end <= now:
            raise _conflict(f"{key_id!r} is revoked or has expired; make a new key")
        secret = new_secret()
        rotated = key.rotated(secret, now, rotation.grace_s)
        await self._change("rotated", key, rotated, now, by)
        return self._ring.entry(rotated, now) | {"secret": secret}

    async def revoke(self, key_id: str, by: str | None) -> dict[str, Any]:
        """The key, which no call is admitted with from now on; durable on return. Raises UnknownKey, Conflict."""
        key, now = self._own(key_id), self._clock()
        if key.revoked_at is None:
            revoked = key.revoked(now)
            await self._change("revoked", key, revoked, now, by)
            key = revoked
        return self._ring.entry(key, now)

    async def _change(self, what: str, before: Key | None, after: Key, now: float, by: str | None) -> None:
        row = {
            "ts": now,
            "subject": KeyRing.subject,
            "what": what,
            "pool": None,
            "model": None,
            "before": None if before is None else before.public(),
            "after": after.public(),
            "reason": None,
            "by": by,
            "secrets": after.private(),  # digests: they stay in the operational store
        }
        durable = self._changes.change([row])
        await asyncio.shield(durable)  # an operator who goes away must not cancel what has been done

    def _own(self, key_id: str) -> Key:
        key = self._ring.get(key_id)
        if key is not None:
            return key
        if key_id in self._ring.configured_ids:
            raise _conflict(f"{key_id!r} is a key of the configuration; change it there")
        raise UnknownKey(key_id)

    def _check(self, wanted: NewKey, now: float) -> None:
        problems: list[dict[str, str]] = []
        if self._tiers and wanted.tier is not None and wanted.tier not in self._tiers:
            problems.append({"param": "tier", "message": f"no tier is called so; there are {', '.join(self._tiers)}"})
        if wanted.expires_at is not None and wanted.expires_at <= now:
            problems.append({"param": "expires_at", "message": "is in the past; give unix seconds"})
        known = {*self._known(), *self._aliases} if wanted.allow else set()
        for i, name in enumerate(wanted.allow or ()):
            if name not in known:
                problems.append({"param": f"allow[{i}]", "message": f"no pool or model is called {name!r}"})
        if problems:
            raise InvalidFields(problems)
        if self._auth is None:
            raise _conflict("the service runs open and asks nobody for a key; add an auth section first")
        if self._ring.valid_count(now) >= self._auth.max_keys:
            raise _conflict(f"there are {self._auth.max_keys:,} keys, the most there can be (auth.max_keys)")


def _conflict(message: str) -> Conflict:
    return Conflict(message, None, code="key_conflict")
