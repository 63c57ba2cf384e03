"""Who is calling: finds the principal behind a request's key.

Keeps digests of keys, never the keys. Limits and budgets of callers will live here too; models and pools never do.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from urllib.parse import urlsplit

from serving.config_rules import is_loopback
from serving.errors import Forbidden, Unauthorized
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

    def admit_admin(self, authorization: str | None, host: str, origin: str | None) -> Principal:
        """The principal of an operator; raises Unauthorized or Forbidden.

        `host`, `origin`: the headers. An open service takes whoever is on its machine for its operator, but not the
        pages of other sites in a browser there: those send their origin, or, where a name of theirs was made to point
        here, that name as the host.
        """
        if self._open:
            if not _names_loopback(host) or (origin is not None and origin.partition("://")[2] != host):
                raise Forbidden("without keys, /admin is only for this machine, and not for pages of other sites")
            return _ANYONE
        principal = self.admit(authorization)
        if principal is not _ADMIN:
            hint = "send auth.admin_key" if self._admin is not None else "the configuration has no auth.admin_key"
            raise Forbidden(f"/admin is for the operator: {hint}")
        return principal


def _names_loopback(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
