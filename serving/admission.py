"""Who is calling: finds the principal behind a request's key.

Keeps digests of keys, never the keys. Limits and budgets of callers will live here too; models and pools never do.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256

from serving.errors import Unauthorized
from serving.settings import AuthSettings

__all__ = ["Admission", "Principal"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a call is logged under; None where the service runs open or the key says nothing."""

    user: str | None = None
    team: str | None = None
    tier: str | None = None


_ANYONE = Principal()
_ADMIN = Principal(user="admin")


class Admission:
    """Maps keys to principals. Without an `auth` section everybody is admitted (and only loopback is served)."""

    def __init__(self, auth: AuthSettings | None) -> None:
        self._open = auth is None
        self._admin: bytes | None = None
        self._by_digest: dict[bytes, Principal] = {}
        if auth is not None:
            if auth.admin_key is not None:
                self._admin = _digest(auth.admin_key.get_secret_value())
            for entry in auth.keys:
                self._by_digest[_digest(entry.key.get_secret_value())] = Principal(entry.user, entry.team, entry.tier)

    def admit(self, authorization: str | None) -> Principal:
        """The principal of an `Authorization: Bearer` header; raises Unauthorized.

        Keys are looked up by their SHA-256, so the time taken tells nothing about how much of a guess was right.
        """
        if self._open:
            return _ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("send a key as 'Authorization: Bearer …'")
        digest = _digest(key.strip())
        principal = self._by_digest.get(digest)
        if principal is None and self._admin is not None and hmac.compare_digest(digest, self._admin):
            principal = _ADMIN
        if principal is None:
            raise Unauthorized("this key is not known here")
        return principal


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
