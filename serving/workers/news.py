"""What this process's breakers tell those of the other workers, and hear of them: an endpoint is down for all at once.

Each worker may still probe by itself; who finds the endpoint serving closes the breaker for all. A message that is lost
costs no more than finding out again. Knows no store: messages go and come by what it is given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from serving.model_settings import ModelSettings
    from serving.upstream import Upstreams

__all__ = ["BREAKER", "BreakerNews"]

BREAKER: Final = "breaker"  # the topic
_log = logging.getLogger("pointsman.workers")


class _Moved(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    model: str
    endpoint: str
    open_s: float = Field(ge=0, le=1e9)
    opened: int = Field(ge=0)


class BreakerNews:
    """Of all endpoints. `publish(topic, message)` reaches the others alone; `upstreams` are those of now."""

    def __init__(self, publish: Callable[[str, bytes], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._publish, self._clock = publish, clock
        self.upstreams: Upstreams | None = None

    def moved(self, model: str, endpoint: str, open_s: float, opened: int) -> None:
        """One has opened here, or closed: tell the others."""
        told = {"model": model, "endpoint": endpoint, "open_s": open_s, "opened": opened}
        self._publish(BREAKER, orjson.dumps(told))

    def changed(self, name: str, model: ModelSettings | None) -> None:
        """Another worker has had a model added, or (None) taken out, or changed its pools."""
        if self.upstreams is None:
            return
        if model is None and name in self.upstreams:
            self.upstreams.retire(name)
        elif model is not None and name not in self.upstreams:
            self.upstreams.open(model)

    def heard(self, message: bytes) -> None:
        """Another worker has told that: so it is here, where there is such an endpoint."""
        try:
            told = _Moved.model_validate_json(message)
        except ValidationError:
            _log.warning("a message about a breaker that cannot be read; do all workers run the same version?")
            return
        if self.upstreams is None or told.model not in self.upstreams:
            return
        for endpoint in self.upstreams[told.model].endpoints:
            if endpoint.name == told.endpoint:
                endpoint.breaker.adopt(self._clock(), told.open_s, told.opened)
