"""The sections `auth` and `tiers` of the configuration: who may call, and what a caller's tier may use.

Owns their form and ranges. What they demand of other sections is `serving.config_rules`' matter; nothing is verified
or fetched here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from serving.config_rules import is_loopback
from serving.config_values import AccessKey, Count, Flag, Label, Name, Number, OrDefaults, Section, reject, resolved

__all__ = ["AuthSettings", "ClaimSettings", "JwtSettings", "KeySettings", "TierSettings"]

Algorithm = Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]
_SOURCES = ("secret", "public_key", "jwks_file", "jwks_url")
_PEM = "-----BEGIN "


class KeySettings(Section):
    """One caller."""

    key: AccessKey = Field(description="The key the caller sends, at least 8 characters.")
    user: Label = Field(description="Whom the calls are logged under.")
    team: Label | None = Field(default=None, description="The user's team, for logs and limits.")
    tier: Label | None = Field(default=None, description="The user's tier, one of `tiers`, for logs and limits.")
    allow: tuple[Name, ...] | None = Field(
        default=None, max_length=1_000, description="Only these pools and models, of those that the tier may use."
    )


def _url(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if any(c.isspace() or not c.isprintable() for c in text):
        reject("must have no spaces or control characters")
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        reject("must be a URL, such as https://login.example.com/jwks.json")
    if not host or parts.username is not None or parts.fragment:
        reject("must be a URL, such as https://login.example.com/jwks.json")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        reject("must begin with https://: whoever could change what comes from there could call as anyone")
    return value


def _pem(value: Any) -> Any:
    value = resolved(value)
    if isinstance(value, str) and not value.strip().startswith(_PEM):
        reject("must be a public key in PEM, from -----BEGIN PUBLIC KEY----- on")
    if isinstance(value, str) and "PRIVATE" in value.partition("\n")[0]:
        reject("is a private key; only the public one belongs here")
    return value


class ClaimSettings(Section):
    """Which claims of a token say whom it stands for."""

    user: Name = Field(default="sub", description="Claim that holds the user; a token without it is refused.")
    team: Name = Field(default="team", description="Claim that holds the team, if there is one.")
    tier: Name = Field(default="tier", description="Claim that holds the tier, if there is one.")


class JwtSettings(Section):
    """Tokens (JWT) that are taken beside keys. Exactly one of secret, public_key, jwks_file, jwks_url."""

    algorithms: tuple[Algorithm, ...] = Field(
        min_length=1, max_length=10, description="Signatures that are taken: HS256, RS256, ES256 and so on; never none."
    )
    secret: Annotated[SecretStr, Field(min_length=32, max_length=4096)] | None = Field(
        default=None, description="Shared secret of HS256 and its like, at least 32 characters."
    )
    public_key: Annotated[str, Field(max_length=16_384), BeforeValidator(_pem)] | None = Field(
        default=None, description="Public key in PEM."
    )
    jwks_file: Label | None = Field(default=None, description="File with a JWK set; read again when it changes.")
    jwks_url: Annotated[SecretStr, Field(max_length=2_048), AfterValidator(_url)] | None = Field(
        default=None, description="URL of a JWK set; fetched at the start, then every jwks_refresh_s."
    )
    jwks_refresh_s: Number = Field(
        default=300.0, ge=1, le=86_400, description="Seconds between two readings of the JWK set at jwks_url."
    )
    jwks_retry_s: Number = Field(
        default=10.0, ge=0.1, le=3_600, description="Least seconds between two readings that unknown key ids ask for."
    )
    jwks_timeout_s: Number = Field(default=5.0, gt=0, le=60, description="Seconds that one reading may take.")
    jwks_max_bytes: Count = Field(default=2**20, ge=1024, le=2**26, description="Largest JWK set, in bytes.")
    issuer: Label | None = Field(default=None, description="What a token's iss must be; without it, anything.")
    audience: Label | None = Field(default=None, description="What a token's aud must hold; without it, anything.")
    leeway_s: Number = Field(default=0.0, ge=0, le=600, description="Seconds that clocks may differ by.")
    claims: Annotated[ClaimSettings, OrDefaults] = Field(
        default_factory=ClaimSettings, description="Which claims say whom a token stands for."
    )

    @model_validator(mode="after")
    def _one_source(self) -> JwtSettings:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"there are {' and '.join(given)}" if given else "there is none"
            reject(f"needs exactly one of {', '.join(_SOURCES)}; {found}")
        shared = given[0] == "secret"
        for i, name in enumerate(self.algorithms):
            if name.startswith("HS") != shared:
                # A public key taken for a shared secret would let anyone sign who can read it.
                hint = "use RS256 or its like" if not shared else "use HS256, HS384 or HS512"
                reject(f"{name} does not go with {given[0]}", hint, ("algorithms", i))
        if self.secret is not None:
            need = max(int(name[2:]) // 8 for name in self.algorithms)
            if len(self.secret.get_secret_value().encode()) < need:
                reject(f"must have at least {need} bytes for {max(self.algorithms)}", None, ("secret",))
        return self


class AuthSettings(Section):
    """Who may call. Without this section the service is open, and then only on a loopback address."""

    admin_key: AccessKey | None = Field(default=None, description="Key of /admin; without one /admin is closed.")
    keys: tuple[KeySettings, ...] = Field(default=(), max_length=10_000, description="The callers.")
    max_keys: Count = Field(
        default=10_000, ge=0, le=100_000, description="Most keys made while the service runs (POST /admin/keys)."
    )
    jwt: JwtSettings | None = Field(default=None, description="Tokens that are taken beside keys.")

    @model_validator(mode="after")
    def _somebody(self) -> AuthSettings:
        if not self.keys and self.admin_key is None and self.jwt is None:
            reject("is required: without keys, admin_key and jwt nobody could call", "add one of them", ("keys",))
        return self


class TierSettings(Section):
    """What callers of one tier may use, and who goes first."""

    name: Label = Field(description="The tier's name, as keys and tokens say it.")
    pools: dict[Name, Name] = Field(
        default_factory=dict, max_length=1_000, description="By the name a caller gives: the pool or model it means."
    )
    allow: tuple[Name, ...] | None = Field(
        default=None, max_length=1_000, description="Only these names, and those of pools; without it, all."
    )
    priority: Count = Field(
        default=0, ge=-1_000, le=1_000, description="Where there is too much to do: higher goes first."
    )
    default: Flag = Field(default=False, description="Whether callers without a tier, or of an unknown one, are in it.")
