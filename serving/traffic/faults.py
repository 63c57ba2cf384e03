"""Faults on purpose: which stand, whom they are drawn for, and what one does to the attempt it was drawn for.

It acts where an attempt is sent, so breakers, retries, fallbacks, outcomes and learning see it as any failure. Of
several workers each has all of them; a process that starts anew has those of its configuration. Knows nothing of HTTP,
and learns nothing.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from serving.errors import Conflict, InvalidFields, ServiceError, UnknownModel, UpstreamError
from serving.traffic.fault_settings import FaultRule, FaultSettings

if TYPE_CHECKING:
    from bandit.types import Status
    from serving.endpoint import Endpoint
    from serving.traffic.drain import Changes
    from serving.upstream import Upstreams
    from serving.wire import Call

__all__ = ["SUBJECT", "Fault", "Faults", "UnknownFault"]

SUBJECT: Final = "faults"
_EVENT_ENDS: Final = re.compile(rb"\r?\n\r?\n")


class UnknownFault(ServiceError):
    """No fault that stands has this id."""

    param = "id"

    def __init__(self, name: str) -> None:
        super().__init__(f"no fault has the id {name[:64]!r}; it may have ended. GET /admin/faults lists them")


class Faults:
    """Those that stand. `count` is told the model and the kind of each that happens; `clock` is monotonic.

    `upstreams`: the endpoints of now, for the names that a rule may have; a reload shows others.
    """

    def __init__(
        self,
        settings: FaultSettings,
        changes: Changes,
        *,
        count: Callable[[str, str], None],
        clock: Callable[[], float],
        now: float,
    ) -> None:
        self._changes, self._count, self._clock = changes, count, clock
        self.upstreams: Upstreams | None = None
        self.configure(settings, now)

    def configure(self, settings: FaultSettings, now: float) -> None:
        """Begin with those of the configuration; others end. `now` is unix time."""
        self._settings = settings
        self._rng = random.Random(settings.seed)
        rules = settings.inject if settings.enabled else ()
        self._standing = [self._stand(_name(rule, nth), rule, None, now) for nth, rule in enumerate(rules)]

    def draw(self, model: str, endpoint: str) -> Fault | None:
        """What is to happen to an attempt: the first that stands, is about it, and comes up."""
        for standing in self._now() if self._standing else ():
            rule = standing.rule
            about = rule.model in (None, model) and rule.endpoint in (None, endpoint)
            if about and self._rng.random() < rule.share:
                return Fault(standing, model, self._count)
        return None

    def listed(self, now: float) -> list[dict[str, Any]]:
        """Those that stand, as JSON; raises Conflict where there may be none."""
        self._check_enabled()
        return [standing.shown(now, self._clock()) for standing in self._now()]

    async def add(self, rule: FaultRule, by: str | None, now: float) -> dict[str, Any]:
        """One more; durable on return. Raises Conflict, UnknownModel, InvalidFields."""
        self._check_enabled()
        self._check_names(rule)
        if len(self._now()) >= self._settings.limit:
            raise Conflict(f"{self._settings.limit} faults stand already (faults.limit)", None, "too_many_faults")
        made = self._stand(f"f{secrets.token_hex(3)}", rule, by, now)
        shown = made.shown(now, self._clock())
        durable = self._changes.change([_row("injected", None, shown, by, now)])
        self._standing.append(made)
        await asyncio.shield(durable)  # an operator who goes away must not cancel what has been done
        return shown

    async def remove(self, name: str | None, by: str | None, now: float) -> list[dict[str, Any]]:
        """End the one of that id, or all; durable on return: those that ended. Raises Conflict, UnknownFault."""
        self._check_enabled()
        ending = [standing for standing in self._now() if name in (None, standing.name)]
        if name is not None and not ending:
            raise UnknownFault(name)
        shown = [standing.shown(now, self._clock()) for standing in ending]
        if ending:
            rows = [_row("removed", entry, None, by, now) for entry in shown]
            durable = self._changes.change(rows)
            self._standing = [standing for standing in self._standing if standing not in ending]
            await asyncio.shield(durable)
        return shown

    def heard(self, row: Mapping[str, Any]) -> None:
        """Do as the change row of another process says, where faults are enabled here, too."""
        about = row["after"] if row["what"] == "injected" else row["before"]
        self._standing = [standing for standing in self._now() if standing.name != about["id"]]
        if row["what"] != "injected" or not self._settings.enabled or len(self._standing) >= self._settings.limit:
            return
        try:
            rule = FaultRule.model_validate({name: about[name] for name in FaultRule.model_fields})
        except (KeyError, ValidationError):
            return  # of another version of the service
        self._standing.append(self._stand(about["id"], rule, row["by"], row["ts"]))

    def _stand(self, name: str, rule: FaultRule, by: str | None, now: float) -> _Standing:
        ends_at = None if rule.for_s is None else self._clock() + rule.for_s
        return _Standing(name, rule, by, now, ends_at)

    def _now(self) -> list[_Standing]:
        """Those whose time is not over; the others are gone."""
        at = self._clock()
        if any(standing.over(at) for standing in self._standing):
            self._standing = [standing for standing in self._standing if not standing.over(at)]
        return self._standing

    def _check_enabled(self) -> None:
        if not self._settings.enabled:
            message = "faults are not enabled: set faults.enabled in the configuration, and reload it"
            raise Conflict(message, None, "faults_disabled")

    def _check_names(self, rule: FaultRule) -> None:
        known = self.upstreams
        if known is None or rule.model is None:
            return
        if rule.model not in known:
            raise UnknownModel(rule.model, list(known))
        places = [endpoint.name for endpoint in known[rule.model].endpoints]
        if rule.endpoint is not None and rule.endpoint not in places:
            message = f"{rule.model} has no endpoint {rule.endpoint!r}; there is {', '.join(places)}"
            raise InvalidFields([{"param": "endpoint", "message": message}])


@dataclass(slots=True, eq=False)
class _Standing:
    """A rule in force. `since` is unix time, `ends_at` on the monotonic clock."""

    name: str
    rule: FaultRule
    by: str | None
    since: float
    ends_at: float | None
    injected: int = 0

    def over(self, at: float) -> bool:
        return self.ends_at is not None and at >= self.ends_at

    def shown(self, now: float, at: float) -> dict[str, Any]:
        left_s = None if self.ends_at is None else self.ends_at - at
        ends = {"since": self.since, "ends_at": None if left_s is None else now + left_s}
        return {"id": self.name, **self.rule.model_dump(), **ends, "by": self.by, "injected": self.injected}


class Fault:
    """What is to happen to one attempt on `model`."""

    def __init__(self, standing: _Standing, model: str, count: Callable[[str, str], None]) -> None:
        self._standing, self._rule, self._model, self._count = standing, standing.rule, model, count
        self._acted = False

    async def send(self, endpoint: Endpoint, call: Call, body: bytes) -> Any:
        """As the endpoint's own `send`, with the fault."""
        await self._before(endpoint, broken=True)
        return await endpoint.send(call, body)

    @asynccontextmanager
    async def stream(self, endpoint: Endpoint, call: Call, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """As the endpoint's own `stream`; a disconnect comes after the first event, when no other can take over."""
        await self._before(endpoint, broken=False)
        async with endpoint.stream(call, body) as chunks:
            yield self._cut(chunks) if self._rule.kind == "disconnect" else chunks

    def told(self, status: Status, error: str | None) -> str | None:
        """The `error` of the attempt's outcome: that it was injected, unless something else ended the attempt."""
        another = status == "cancelled" or (status == "error" and self._rule.kind == "latency")
        return error if another or not self._acted else f"injected_{self._rule.kind}"

    async def _before(self, endpoint: Endpoint, *, broken: bool) -> None:
        """What happens in place of sending, or before it; the attempt occupies its endpoint meanwhile."""
        rule = self._rule
        endpoint.begin()
        try:
            if rule.kind == "latency" and rule.latency_s is not None:
                self._act()
                await asyncio.sleep(rule.latency_s)
            elif rule.kind == "stall":
                self._act()
                await asyncio.Event().wait()  # until the attempt's own time is over
            elif rule.kind == "error":
                self._act()
                status = rule.status or 503
                raise UpstreamError(self._model, f"the endpoint answered {status}", status)
            elif broken:
                self._act()
                raise UpstreamError(self._model, "the connection failed", None, "upstream_unreachable")
        finally:
            endpoint.end()

    async def _cut(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            end = _EVENT_ENDS.search(chunk)
            yield chunk if end is None else chunk[: end.end()]
            if end is not None:
                self._act()
                raise UpstreamError(self._model, "the answer broke off", None, "upstream_disconnected")

    def _act(self) -> None:
        self._acted = True
        self._standing.injected += 1
        self._count(self._model, self._rule.kind)


def _name(rule: FaultRule, nth: int) -> str:
    """The id of a fault of the configuration: the same in every process that has the same one."""
    return "f" + sha256(f"{nth} {rule.model_dump_json()}".encode()).hexdigest()[:6]


def _row(what: str, before: Any, after: Any, by: str | None, now: float) -> Mapping[str, Any]:
    row = {"ts": now, "subject": SUBJECT, "what": what, "pool": None, "model": (before or after)["model"]}
    return row | {"before": before, "after": after, "reason": None, "by": by}
