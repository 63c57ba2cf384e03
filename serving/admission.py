"""Who is calling: finds the principal behind a request's key or token.

Keeps digests of keys, never the keys. What a caller may use is the tiers' matter; models and pools are not known here.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from serving.access.jwt import TokenReader, is_token
from serving.access.keys import KeyRing, digest_of
from serving.access.principal import OPERATOR, Principal
from serving.access.settings import AuthSettings
from serving.access.tiers import Tiers
from serving.config_rules import is_loopback
from serving.errors import Forbidden, Unauthorized

__all__ = ["Admission", "Principal"]

_ANYONE = Principal()


class Admission:
    """Maps keys and tokens to principals. Without an `auth` section everybody is admitted, on loopback alone.

    `tokens`: the reader of JWTs, where the configuration has any; `clock`: unix seconds.
    """

    def __init__(
        self,
        auth: AuthSettings | None,
        ring: KeyRing,
        tiers: Tiers,
        *,
        tokens: TokenReader | None = None,
        clock: Callable[[], float],
    ) -> None:
        self._open = auth is None
        self._ring, self._tiers, self._tokens, self._clock = ring, tiers, tokens, clock
        self._admin: bytes | None = None
        if auth is not None and auth.admin_key is not None:
            self._admin = digest_of(auth.admin_key.get_secret_value())

    async def admit(self, headers: Mapping[str, str]) -> Principal:
        """The principal of an `Authorization: Bearer` header, in its tier; raises Unauthorized.

        Keys are looked up by their SHA-256, so the time taken tells nothing about how much of a guess was right. It
        waits for nothing but the key set that a token's unknown key id may ask for.
        """
        if self._open:
            return self._tiers.settled(_ANYONE)
        sent = _bearer(headers)
        principal = self._of_key(sent)
        if principal is None and self._tokens is not None and is_token(sent):
            principal = await self._tokens.read(sent)
        if principal is None:
            raise Unauthorized("this key is not known here")
        return self._tiers.settled(principal)

    def admit_admin(self, headers: Mapping[str, str]) -> Principal:
        """The principal of an operator; raises Unauthorized or Forbidden.

        An open service takes whoever is on its machine for its operator, but not the pages of other sites in a browser
        there: those send their origin, or, where a name of theirs was made to point here, that name as the host.
        """
        if self._open:
            host, origin = headers.get("Host", ""), headers.get("Origin")
            if not _names_loopback(host) or (origin is not None and origin.partition("://")[2] != host):
                raise Forbidden("without keys, /admin is only for this machine, and not for pages of other sites")
            return _ANYONE
        sent = _bearer(headers)
        principal = self._of_key(sent)
        if principal is None and not (self._tokens is not None and is_token(sent)):
            raise Unauthorized("this key is not known here")
        if principal is not OPERATOR:
            hint = "send auth.admin_key" if self._admin is not None else "the configuration has no auth.admin_key"
            raise Forbidden(f"/admin is for the operator: {hint}")
        return principal

    def tenant_of(self, principal: Principal) -> str | None:
        """Whose decisions a caller may speak of; None: everybody's, as an operator or in an open service."""
        return None if self._open or principal.operator else principal.tenant

    def _of_key(self, sent: str) -> Principal | None:
        digest = digest_of(sent)
        if self._admin is not None and hmac.compare_digest(digest, self._admin):
            return OPERATOR
        return self._ring.find(digest, self._clock())


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthorized("send a key as 'Authorization: Bearer …'")
    return key.strip()


def _names_loopback(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
