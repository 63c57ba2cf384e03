"""Who is calling: finds the principal behind a request's key or token.

Keeps digests of keys, never the keys. What a caller may use is the tiers' matter; models and pools are not known here.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from serving.access.jwt import TokenReader, is_token
from serving.access.keys import KeyRing, digest_of
from serving.access.principal import OPERATOR, Principal
from serving.access.settings import AuthSettings
from serving.access.tiers import Tiers
from serving.config_rules import is_loopback
from serving.errors import Forbidden, ServiceError, Unauthorized

__all__ = ["Admission", "CrossSite", "Principal"]

_ANYONE = Principal()


class CrossSite(ServiceError):
    """Asked without a key by a page of another site, as far as its headers tell."""


class Admission:
    """Maps keys and tokens to principals. Without an `auth` section everybody on this machine is admitted.

    `tokens`: the reader of JWTs, where the configuration has any; `clock`: unix seconds; `hosts`: further names by
    which it may be called without a key, beside those of a loopback address.
    """

    def __init__(
        self,
        auth: AuthSettings | None,
        ring: KeyRing,
        tiers: Tiers,
        *,
        tokens: TokenReader | None = None,
        clock: Callable[[], float],
        hosts: Collection[str] = (),
    ) -> None:
        self._open, self._hosts = auth is None, frozenset(host.lower() for host in hosts)
        self._ring, self._tiers, self._tokens, self._clock = ring, tiers, tokens, clock
        self._admin: bytes | None = None
        if auth is not None and auth.admin_key is not None:
            self._admin = digest_of(auth.admin_key.get_secret_value())

    async def admit(self, headers: Mapping[str, str]) -> Principal:
        """The principal of an `Authorization: Bearer` header, in its tier; raises Unauthorized.

        Keys are looked up by their SHA-256, so the time taken tells nothing about how much of a guess was right. It
        waits for nothing but the key set that a token's unknown key id may ask for.

        An open service raises CrossSite for requests that pages of other sites make.
        """
        if self._open:
            self._check_here(headers)
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

        An open service takes whoever is on its machine for its operator; as `admit`, it raises CrossSite.
        """
        if self._open:
            self._check_here(headers)
            return _ANYONE
        sent = _bearer(headers)
        principal = self._of_key(sent)
        if principal is None and not (self._tokens is not None and is_token(sent)):
            raise Unauthorized("this key is not known here")
        if principal is not OPERATOR:
            hint = "send auth.admin_key" if self._admin is not None else "the configuration has no auth.admin_key"
            raise Forbidden(f"/admin is for the operator: {hint}")
        return principal

    def here(self, headers: Mapping[str, str]) -> bool:
        """Whether a request is one of this machine's own, as far as its headers tell.

        A browser here also sends what pages of other sites have it send, unasked where it looks like a form's: with
        their origin, or, where a name of theirs was made to point here (DNS rebinding), with that name as the host.
        """
        host, origin = headers.get("Host", ""), headers.get("Origin")
        return self._names_us(host) and (origin is None or origin.partition("://")[2] == host)

    def tenant_of(self, principal: Principal) -> str | None:
        """Whose decisions a caller may speak of; None: everybody's, as an operator or in an open service."""
        return None if self._open or principal.operator else principal.tenant

    def _check_here(self, headers: Mapping[str, str]) -> None:
        if not self.here(headers):
            raise CrossSite(
                "without keys the service is only for this machine, and not for pages of other sites;"
                " server.allowed_hosts adds names it may be called by"
            )

    def _names_us(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self._hosts

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
