"""What an operator sees of the service as a whole: its configuration, what was changed since, what was learned.

Decides and changes nothing. A secret is never shown, only that it is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretBytes, SecretStr

from bandit.posterior import QUALITY
from serving.access.ledger import Ledger
from serving.learner import Learner
from serving.settings import Settings
from serving.traffic.state import Traffic
from serving.warmstart import WarmStart, packed

__all__ = ["OperatorDesk"]

_MASK: Final = "***"


class OperatorDesk:
    """`settings`: those in force now."""

    def __init__(self, settings: Callable[[], Settings], learner: Learner, traffic: Traffic, ledger: Ledger) -> None:
        self._settings, self._learner, self._traffic, self._ledger = settings, learner, traffic, ledger

    def config(self) -> dict[str, Any]:
        """Every setting with its value in force, defaults included, and beside them what was changed at run time."""
        pools = {name: pool.live for name, pool in self._traffic.pools.items() if pool.live}
        roster = self._learner.roster.state()
        return {
            "settings": _masked(self._settings().model_dump()),
            "changed": {
                "pools": pools,
                "budgets": self._ledger.overrides,
                "disabled_models": sorted(self._traffic.disabled),
                "added_models": sorted(roster["definitions"]),
                "memberships": roster["changes"],
            },
        }

    def snapshot(self, now: float) -> bytes:
        """What every pool has learned, in the form of a warm start's file: another service can start from it."""
        return packed({name: self._start(name, now) for name in self._learner.pools})

    def _start(self, name: str, now: float) -> WarmStart:
        pool = self._learner.pools[name]
        counts = pool.heads.counts(QUALITY, pool.step)
        return WarmStart(
            features=pool.features.state(),
            state=pool.state(),
            source=f"pool {name} of a running service",
            made_at=now,
            effective_samples=float(counts.sum()),
            counts={model: int(count) for model, count in zip(pool.names, counts, strict=True)},
        )


def _masked(value: Any) -> Any:
    """Plain values for JSON, secrets hidden; of a URL what may hold one."""
    if isinstance(value, SecretStr | SecretBytes):
        return _MASK
    if isinstance(value, Mapping):
        return {str(name): _masked(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, str) and "://" in value:
        return _url(value)
    return value


def _url(text: str) -> str:
    try:
        url = urlsplit(text)
    except ValueError:
        return _MASK
    netloc = f"{_MASK}@{url.netloc.rpartition('@')[2]}" if "@" in url.netloc else url.netloc
    return urlunsplit((url.scheme, netloc, url.path, _MASK if url.query else "", ""))
