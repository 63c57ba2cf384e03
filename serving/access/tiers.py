"""What a caller may use: the pools and models of the tier, narrowed by the key's own list, and who goes first.

Answers questions about names alone. Limits and budgets are others' matter, and so is who the caller is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from serving.access.principal import Principal
from serving.access.settings import TierSettings
from serving.errors import NotAllowed, UnknownModel

__all__ = ["Tiers"]

_NAMED = 20  # names in one message
Allowed = Callable[[str | None], Collection[str] | None]


class Tiers:
    """The tiers of the configuration; `allowed` tells the list of a key by its id (`KeyRing.allowed`)."""

    def __init__(self, tiers: Sequence[TierSettings], allowed: Allowed) -> None:
        self._tiers = {tier.name: tier for tier in tiers}
        self._default = next((tier.name for tier in tiers if tier.default), None)
        self._allowed = allowed

    def settled(self, principal: Principal) -> Principal:
        """The principal in its tier: the default one where it has none, or one that is not known here."""
        if self._default is None or principal.tier in self._tiers or principal.operator:
            return principal
        return replace(principal, tier=self._default)

    def entitled(self, principal: Principal, name: str, known: Collection[str]) -> str:
        """The pool or model that `name` means for this caller; `known` are all there are.

        Raises NotAllowed for one the caller may not use, and UnknownModel, which names only those it may.
        """
        tier = self._tier(principal)
        actual = name if tier is None else tier.pools.get(name, name)
        if actual not in known:
            raise UnknownModel(name, self.visible(principal, known))
        if not self._may(principal, tier, name):
            seen = self.visible(principal, known)
            listed = ", ".join(seen[:_NAMED]) + (f" and {len(seen) - _NAMED} more" if len(seen) > _NAMED else "")
            raise NotAllowed(f"{name!r} is not for this key; it may use {listed or 'nothing that is there'}")
        return actual

    def visible(self, principal: Principal, known: Collection[str]) -> list[str]:
        """The names that a caller may use, of all that are `known`, the tier's own names for them first."""
        tier = self._tier(principal)
        own = [] if tier is None else [name for name, actual in tier.pools.items() if actual in known]
        there = [name for name in known if tier is None or name not in tier.pools]
        return [name for name in dict.fromkeys((*own, *there)) if self._may(principal, tier, name)]

    def priority(self, principal: Principal) -> int:
        """How early its calls go where there is too much to do; higher goes first."""
        tier = self._tier(principal)
        return 0 if tier is None else tier.priority

    def _tier(self, principal: Principal) -> TierSettings | None:
        name = self.settled(principal).tier
        return None if name is None else self._tiers.get(name)

    def _may(self, principal: Principal, tier: TierSettings | None, name: str) -> bool:
        if principal.operator:
            return True
        if tier is None and self._tiers and principal.tier is not None:
            return False  # a tier that nobody defined allows nothing: a slip must not open every model
        if tier is not None and tier.allow is not None and name not in tier.allow and name not in tier.pools:
            return False
        own = self._allowed(principal.key_id)
        return own is None or name in own
