"""Whom a call is made for: the one value that everything about callers hangs on.

Holds public names only, never a key, a token or a digest of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["ADMIN_KEY_ID", "OPERATOR", "Principal"]

ADMIN_KEY_ID: Final = "admin"  # ids of other keys have a prefix: none can be called so


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a call is logged under; None where the service runs open or the key says nothing.

    `key_id` is the public id of the key that was sent; of a token `jwt:` and a hash of its subject.
    """

    user: str | None = None
    team: str | None = None
    tier: str | None = None
    key_id: str | None = None

    @property
    def tenant(self) -> str:
        """What answers, sessions and feedback never leave: team, else user, else key; "" where it runs open.

        It says which of them it is: a user may be called as a team is.
        """
        if self.operator:
            return "operator"
        if self.team is not None:
            return f"team:{self.team}"
        if self.user is not None:
            return f"user:{self.user}"
        return "" if self.key_id is None else f"key:{self.key_id}"

    @property
    def operator(self) -> bool:
        """Whether `auth.admin_key` was sent: no tier binds its holder, and no tenant."""
        return self.key_id == ADMIN_KEY_ID


OPERATOR: Final = Principal(user="admin", key_id=ADMIN_KEY_ID)
