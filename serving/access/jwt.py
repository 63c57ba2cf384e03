"""Tokens (JWT) in place of keys: what a token must prove, and whom its claims then stand for.

PyJWT verifies; which signatures may be made with which key is decided here, before it is asked. Never tells more of a
token than what is wrong with it, and keeps none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Protocol

from serving.access.principal import Principal
from serving.errors import Unauthorized

if TYPE_CHECKING:
    from serving.access.settings import JwtSettings

__all__ = ["FixedKey", "SigningKeys", "TokenReader", "is_token"]

_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)
_MOST_CHARS: Final = 8_192
_MOST_LABEL: Final = 200


def is_token(text: str) -> bool:
    """Whether what was sent has a token's form: three parts in base64url, with dots between."""
    return _TOKEN.fullmatch(text) is not None


class SigningKeys(Protocol):
    """Where the keys come from that tokens are signed with."""

    async def key_for(self, kid: str | None, algorithm: str) -> Any:
        """What PyJWT verifies `algorithm` with; raises Unauthorized for a key id that is not known."""


class FixedKey:
    """The one secret or public key of the configuration; key ids say nothing."""

    def __init__(self, settings: JwtSettings) -> None:
        from jwt import get_algorithm_by_name

        text = settings.public_key or (settings.secret.get_secret_value() if settings.secret is not None else "")
        self._keys: dict[str, Any] = {}
        for name in settings.algorithms:
            self._keys[name] = get_algorithm_by_name(name).prepare_key(text)

    async def key_for(self, kid: str | None, algorithm: str) -> Any:
        """The key, as this algorithm takes it."""
        del kid
        return self._keys[algorithm]


class TokenReader:
    """Reads tokens signed with `keys`; an algorithm that the configuration does not name is refused unread."""

    def __init__(self, settings: JwtSettings, keys: SigningKeys) -> None:
        self._settings, self._keys = settings, keys

    async def read(self, token: str) -> Principal:
        """Whom a token stands for. Raises Unauthorized, which says what is wrong and nothing that the token holds."""
        import jwt

        settings = self._settings
        if len(token) > _MOST_CHARS:
            raise Unauthorized(f"the token is longer than {_MOST_CHARS:,} characters")
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
            if algorithm not in settings.algorithms:
                raise Unauthorized(f"a token must be signed by {' or '.join(settings.algorithms)}")
            claims = jwt.decode(
                token,
                key=await self._keys.key_for(kid if isinstance(kid, str) else None, algorithm),
                algorithms=[algorithm],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_s,
                options={"require": ["exp"], "verify_aud": settings.audience is not None},
            )
        except (jwt.PyJWTError, ArithmeticError, RecursionError) as error:  # the latter two: absurd numbers, or depth
            raise Unauthorized(f"the token is refused: {_WRONG.get(type(error).__name__, 'it is malformed')}") from None
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        named = self._settings.claims
        user = _label(claims, named.user)
        if user is None:
            raise Unauthorized(f"the token has no claim {named.user!r} to say whom it stands for")
        subject = claims.get("sub") if isinstance(claims.get("sub"), str) else user
        digest = sha256(f"{claims.get('iss', '')}\n{subject}".encode("utf-8", "surrogatepass")).hexdigest()
        return Principal(user, _label(claims, named.team), _label(claims, named.tier), f"jwt:{digest[:16]}")


def _label(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_LABEL or not value.isprintable():
        raise Unauthorized(f"the token's claim {name!r} must be a text of 1 to {_MOST_LABEL} printable characters")
    return value


_WRONG: Final = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidAudienceError": "it is for another audience",
    "InvalidIssuerError": "it is from another issuer",
    "InvalidSignatureError": "its signature is wrong",
    "MissingRequiredClaimError": "it lacks exp, or a claim that issuer or audience ask for",
}
