"""What operators do to a pool's traffic while the service runs: look, shift it, switch learning, disable, experiment.

Checks a change whole before any of it is made; that it lasts is the learner's matter, what it means the traffic fold's.
Knows nothing of HTTP, nor of who may ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from serving.config_file import Document, dotted
from serving.config_problems import validation_problems
from serving.config_values import Flag, Name, Section
from serving.errors import Conflict, InvalidFields, UnknownModel
from serving.learner import Learner
from serving.traffic.canary_settings import CanarySettings
from serving.traffic.rules import named_models
from serving.traffic.settings import ExperimentSettings, Learning, Weights
from serving.traffic.state import PoolTraffic, Traffic

__all__ = ["ModelPatch", "PoolDesk", "PoolPatch", "checked"]

_S = TypeVar("_S", bound=Section)
_FEWEST_FOR_A_CANARY = 2
_MOST_EXPERIMENTS = 20  # of a pool, as the configuration may have


class PoolPatch(Section):
    """The body of `PATCH /admin/pools/{name}`; what it does not name stays as it is."""

    weights: Weights | None = Field(default=None, description="Shares of calls by model; null: the policy chooses.")
    learning: Learning = Field(default="apply", description="apply, observe or bypass.")
    disabled: Annotated[tuple[Name, ...], Field(max_length=256)] = Field(
        default=(), description="The models that get no call of this pool; [] for none."
    )


class ModelPatch(Section):
    """The body of `PATCH /admin/models/{name}`."""

    disabled: Flag = Field(description="Whether it gets no call at all.")


class PoolDesk:
    """Shows and changes the pools' traffic. `breakers`: the states of a model's endpoints, for display."""

    def __init__(self, learner: Learner, traffic: Traffic, breakers: Callable[[str], Any]) -> None:
        self._learner, self._traffic, self._breakers = learner, traffic, breakers

    def pools(self) -> list[dict[str, Any]]:
        """Every pool as `pool` shows it."""
        return [self.pool(name) for name in self._learner.pools]

    def pool(self, name: str) -> dict[str, Any]:
        """All there is to know about a pool's traffic; raises UnknownModel."""
        traffic = self._of(name)
        canary = traffic.canary.status()
        return {
            "name": name,
            "learning": traffic.learning,
            "weights": traffic.weights,
            "disabled": traffic.disabled,
            "models": self._models(name, traffic),
            "canary": None if canary is None else {n: canary[n] for n in ("model", "phase", "step", "share", "held")},
            "experiments": [experiment.status() for experiment in traffic.experiments.values()],
            "sessions": len(traffic.sessions),
            "shadow": self._shadow(traffic),
        }

    async def patch(self, name: str, body: Mapping[str, Any], by: str | None, now: float) -> dict[str, Any]:
        """Change what the body names of a pool; durable on return. Raises UnknownModel, InvalidFields."""
        traffic, patch = self._of(name), checked(PoolPatch, body)
        self._check_members(name, body)
        named: dict[str, Any] = {what: getattr(patch, what) for what in patch.model_fields_set}
        if "disabled" in named:
            named["disabled"] = sorted(set(patch.disabled))
            for i, model in enumerate(patch.disabled):
                if model not in self._learner.pools[name].names:
                    raise InvalidFields([{"param": f"disabled[{i}]", "message": f"{model[:100]!r} is not in the pool"}])
        rows = [traffic.row(what, after, by, now) for what, after in named.items() if after != traffic.value(what)]
        await self._change(rows)
        return self.pool(name)

    async def patch_model(self, name: str, body: Mapping[str, Any], by: str | None, now: float) -> dict[str, Any]:
        """Disable a model everywhere, or let it serve again; durable on return. Raises UnknownModel, InvalidFields."""
        if name not in self._learner.roster.names:
            raise UnknownModel(name, self._learner.roster.names)
        disabled = checked(ModelPatch, body).disabled
        if disabled != (name in self._traffic.disabled):
            await self._change([self._traffic.row(name, disabled=disabled, by=by, ts=now)])
        return {"name": name, "disabled": disabled, "pools": [p.name for p in self._members(name)]}

    async def start_experiment(self, name: str, body: Mapping[str, Any], by: str | None, now: float) -> dict[str, Any]:
        """Begin an experiment in a pool; durable on return. Raises UnknownModel, InvalidFields, Conflict."""
        traffic, experiment = self._of(name), checked(ExperimentSettings, body)
        self._check_members(name, {"experiments": [body]}, prefix="experiments[0].")
        if experiment.name in traffic.experiments:
            running = list(traffic.experiments)
            raise Conflict(f"pool {name!r} has an experiment {experiment.name!r} already", running, "experiment_exists")
        if len(traffic.experiments) >= _MOST_EXPERIMENTS:
            raise Conflict(f"a pool has at most {_MOST_EXPERIMENTS} experiments", None, "experiment_exists")
        after = [*traffic.value("experiments"), experiment.model_dump()]
        await self._change([traffic.row("experiments", after, by, now, f"{experiment.name} begins")])
        return traffic.experiments[experiment.name].status()

    async def end_experiment(self, name: str, experiment: str, by: str | None, now: float) -> dict[str, Any]:
        """End an experiment; durable on return, which says what it had found. Raises UnknownModel."""
        traffic, status = self._of(name), self.experiment(name, experiment)
        after = [entry for entry in traffic.value("experiments") if entry["name"] != experiment]
        await self._change([traffic.row("experiments", after, by, now, f"{experiment} ends")])
        return status | {"ended": now}

    def experiment(self, name: str, experiment: str) -> dict[str, Any]:
        """What an experiment has found so far; raises UnknownModel."""
        experiments = self._of(name).experiments
        if experiment not in experiments:
            raise UnknownModel(experiment, list(experiments), "experiment")
        return experiments[experiment].status()

    def canary(self, name: str) -> dict[str, Any] | None:
        """A pool's canary; None where there was none. Raises UnknownModel."""
        return self._of(name).canary.status()

    def canaries(self) -> list[dict[str, Any]]:
        """The canary of every pool that has or had one."""
        shown = [(name, traffic.canary.status()) for name, traffic in self._traffic.pools.items()]
        return [{"pool": name, **canary} for name, canary in shown if canary is not None]

    def experiments(self) -> list[dict[str, Any]]:
        """Every experiment of every pool."""
        pools = self._traffic.pools.items()
        return [{"pool": name, **found.status()} for name, traffic in pools for found in traffic.experiments.values()]

    async def start_canary(self, name: str, body: Mapping[str, Any], by: str | None, now: float) -> dict[str, Any]:
        """Put a model of the pool on trial; durable on return. Raises UnknownModel, InvalidFields, Conflict."""
        canary, settings = self._of(name).canary, checked(CanarySettings, body)
        if canary.running:
            raise Conflict(f"pool {name!r} has a canary already; abort it first", canary.status(), "canary_running")
        members = self._learner.pools[name].names
        for param, model in (("model", settings.model), ("compare_to", settings.compare_to)):
            if model is not None and model not in members:
                raise InvalidFields([{"param": param, "message": f"{model[:100]!r} is not in the pool"}])
        if len(members) < _FEWEST_FOR_A_CANARY:
            raise InvalidFields([{"param": "model", "message": "is the pool's only one: nothing to compare with"}])
        await self._change([canary.start(settings.to_plan(), now, by)])
        return canary.status() or {}

    async def end_canary(self, name: str, by: str | None, now: float) -> dict[str, Any] | None:
        """Abort a running canary, or let a model in again that one keeps out. Raises UnknownModel, Conflict."""
        canary = self._of(name).canary
        row = canary.abort(now, by) or canary.release(now, by)
        if row is None:
            raise Conflict(f"pool {name!r} has no canary to end", canary.status(), "no_canary")
        await self._change([row])
        return canary.status()

    async def note_purge(self, name: str, dropped: int, by: str | None, now: float) -> None:
        """Log that a pool's kept answers were dropped; durable on return."""
        row = {"ts": now, "subject": "cache", "what": "purged", "pool": name, "model": None, "reason": None, "by": by}
        await self._change([row | {"before": {"answers": dropped}, "after": {"answers": 0}}])

    async def _change(self, rows: list[dict[str, Any]]) -> None:
        if rows:
            await asyncio.shield(self._learner.change(rows))  # one who goes away must not cancel what has been done

    def _of(self, name: str) -> PoolTraffic:
        if name not in self._traffic.pools:
            raise UnknownModel(name, list(self._traffic.pools), "pool")
        return self._traffic.pools[name]

    def _members(self, model: str) -> list[Any]:
        return [pool for pool in self._learner.pools.values() if model in pool.names]

    def _check_members(self, name: str, body: Mapping[str, Any], prefix: str = "") -> None:
        names = self._learner.pools[name].names
        problems = [
            {"param": dotted(at).removeprefix(prefix), "message": f"{model[:100]!r} is not in the pool"}
            for at, model in named_models(body)
            if model not in names
        ]
        if problems:
            raise InvalidFields(problems)

    def _models(self, name: str, traffic: PoolTraffic) -> list[dict[str, Any]]:
        pool, recent = self._learner.pools[name], list(traffic.recent)
        return [
            {
                "name": model,
                "share": recent.count(model) / len(recent) if recent else None,
                "weight": None if traffic.weights is None else traffic.weights.get(model, 0.0),
                "state": state,
                "disabled": not self._traffic.usable(name, model),
                "endpoints": self._breakers(model),
            }
            for model, state in zip(pool.names, pool.filters.states, strict=True)
        ]

    @staticmethod
    def _shadow(traffic: PoolTraffic) -> dict[str, Any] | None:
        shadow = traffic.settings.shadow
        if shadow is None:
            return None
        shown = {"model": shadow.model, "share": shadow.share, "max_usd_per_day": shadow.max_usd_per_day}
        return shown | {"spent_usd": traffic.shadow_spent_usd}


def checked(section: type[_S], body: Mapping[str, Any]) -> _S:
    """The body as a section; raises InvalidFields with all that is wrong."""
    try:
        return section.model_validate(body)
    except ValidationError as error:
        problems = validation_problems(error, Document(data=dict(body)), section)
        raise InvalidFields(
            [{"param": p.path, "message": p.message + (f"; {p.hint}" if p.hint else "")} for p in problems]
        ) from None
