"""Whom an entry of `budgets` or `limits` concerns, and the windows of UTC's calendar.

Questions about names and times alone: nothing is counted here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from serving.access.principal import Principal

if TYPE_CHECKING:
    from serving.access.budget_settings import Period, Scope

__all__ = ["member_of", "window_of"]

_FIXED_S = {"minute": 60, "day": 86_400}


def member_of(scope: Scope, match: str, tier: str | None, principal: Principal) -> str | None:
    """Whose counter of the entry a call goes to: a key's id, a name, "" of `all`; None: the entry is not about it.

    A user is "team/user" where it has a team: one of the same name in another team is another tenant's.
    """
    if tier is not None and principal.tier != tier:
        return None
    if scope == "all":
        return ""
    name = principal.key_id if scope == "key" else getattr(principal, scope)
    if name is None or match not in ("*", name):
        return None
    if scope != "user":
        return str(name)
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in (principal.team, name) if part is not None)


def window_of(period: Period, ts: float) -> tuple[float, float | None]:
    """The window (start, end) in unix seconds that `ts` is in; `total` is one without an end."""
    if period == "total":
        return 0.0, None
    if period != "month":
        length = _FIXED_S[period]
        start = ts // length * length
        return start, start + length
    day = datetime.fromtimestamp(ts, UTC)
    first = datetime(day.year, day.month, 1, tzinfo=UTC)
    after = datetime(day.year + day.month // 12, day.month % 12 + 1, 1, tzinfo=UTC)
    return first.timestamp(), after.timestamp()
