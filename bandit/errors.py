"""The library's error tree. Errors carry their data and say what to change; they know nothing of HTTP.

BanditError
├── InvalidInput       a value outside its documented range (also a ValueError)
├── NoFeasibleArm      limits rule out every arm and the pool asked to fail
├── UnknownArm         a name that is not in the pool
└── SnapshotMismatch   learned state that was written for another shape, features or version
"""

from __future__ import annotations

__all__ = ["BanditError", "InvalidInput", "NoFeasibleArm", "SnapshotMismatch", "UnknownArm"]


class BanditError(Exception):
    """Base of everything this library raises on purpose."""


class InvalidInput(BanditError, ValueError):
    """A value outside its documented range. `field` names it; `str(error)` says what was expected."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class NoFeasibleArm(BanditError):
    """Every arm is filtered and `on_infeasible` is `fail`. `excess` maps each arm to its relative excess."""

    def __init__(self, excess: dict[str, float]) -> None:
        worst = ", ".join(f"{name} by {value:.0%}" for name, value in sorted(excess.items(), key=lambda i: i[1]))
        super().__init__(f"no arm meets the limits (excess: {worst}); relax them or set on_infeasible: least_violation")
        self.excess = excess


class UnknownArm(BanditError, KeyError):
    """A name that is not in the pool."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(name)
        self.name, self.known = name, known

    def __str__(self) -> str:
        return f"unknown arm {self.name!r}; the pool has {', '.join(self.known)}"


class SnapshotMismatch(BanditError):
    """Learned state that cannot be loaded here: other arms, another dimension, another version."""
