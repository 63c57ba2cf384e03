"""Reading the configuration again while the service runs: by SIGHUP, an operator's request, or when its file changed.

Applied whole or refused whole, with every reason. Owns when and whether; what a configuration is made into is `app`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from serving.config_errors import ConfigRefused
from serving.config_file import ConfigError, Problem
from serving.config_source import changed_settings, unchangeable
from serving.errors import ServiceError
from serving.store import StoreError
from serving.warmstart import WarmStartUnusable

if TYPE_CHECKING:
    from serving.config_source import ConfigSource
    from serving.learner import Learner
    from serving.metrics import Metrics
    from serving.settings import Settings

__all__ = ["Reloader"]

_log = logging.getLogger("pointsman.reload")
_ELSEWHERE: Final = "another worker"
_POLL_S: Final = 1.0  # between two looks at the file; it must look the same twice, or it may be half written
Apply = Callable[["Settings"], Awaitable[None]]


class Reloader:
    """Reloads from `source`, one at a time, and where `asked` is set.

    `running`: the settings in force, made of a file of `digest`; `apply` puts others in force, whole or not at all.
    `tell` is given the digest of what was applied, for other processes; what they tell is `heard`.
    """

    def __init__(  # noqa: PLR0917
        self,
        source: ConfigSource,
        running: Settings,
        digest: str,
        apply: Apply,
        learner: Learner,
        metrics: Metrics,
        asked: asyncio.Event,
    ) -> None:
        self._source, self.running, self.digest = source, running, digest
        self._apply, self._learner, self._metrics = apply, learner, metrics
        self._one_at_a_time, self._asked = asyncio.Lock(), asked
        self._stamp, self._tried_digest, self._settled = source.stamp(), digest, True
        self.tell: Callable[[str], None] | None = None
        self._heard, self._hears = digest, False

    async def reload(self, why: str, by: str | None) -> dict[str, Any]:
        """What changed; durable on return. Raises ConfigRefused, and then nothing has changed."""
        async with self._one_at_a_time:
            self._tried_digest = self._source.digest()
            try:
                settings, digest = await asyncio.to_thread(self._source.read)
                changed = changed_settings(self.running, settings)
                if problems := unchangeable(changed, self._source):
                    raise ConfigError(tuple(problems))  # noqa: TRY301
                result = "applied" if changed else "unchanged"
                if changed:
                    await self._apply(settings)
            except (ConfigError, WarmStartUnusable, ServiceError, StoreError) as error:
                self._metrics.reloads.labels("refused").inc()
                if isinstance(error, (ServiceError, StoreError)):
                    raise
                reasons = error.problems if isinstance(error, ConfigError) else (Problem("", str(error)),)
                raise ConfigRefused([asdict(problem) for problem in reasons]) from None
            before, self.digest = self.digest, digest
            self.running = settings
            self._metrics.reloads.labels(result).inc()
            _log.info("configuration %s (%s): %s", result, why, ", ".join(changed) or "nothing differs")
            if changed and (why, digest) != (_ELSEWHERE, self._heard):  # else it has been logged, and all know
                if self.tell is not None:
                    self.tell(digest)
                await self._logged("reloaded", before, {"digest": digest, "changed": changed}, why, by)
            return {"status": result, "before": before, "after": digest, "changed": changed}

    def heard(self, digest: str) -> None:
        """Another process has applied a file of that digest: reload soon, unless it is the one in force."""
        self._heard, self._hears = digest, True

    def catch_up(self) -> None:
        """Others may have applied the file since it was read here, and told it before anybody listened."""
        self.heard(self._source.digest())

    async def run(self) -> None:
        """Reload when asked to, and when the file has changed, where the configuration wants that; until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._asked.wait()
            try:
                if self._asked.is_set():
                    self._asked.clear()
                    await self._tried("SIGHUP")
                elif self._hears:
                    self._hears = False
                    if self._heard != self.digest:
                        await self._tried(_ELSEWHERE)
                elif self.running.server.watch_config and self._file_changed():
                    await self._tried("file")
            except Exception:  # noqa: BLE001 - the boundary of a task
                _log.exception("the configuration cannot be read again")
                self._metrics.unexpected.inc()

    async def _tried(self, why: str) -> None:
        """Reload, where nobody waits to be told what is wrong with it: the log says so."""
        before = self.digest
        try:
            await self.reload(why, None)
        except ConfigRefused as error:
            for problem in error.problems:
                _log.error("configuration refused (%s): %s", why, Problem(**problem))
            await self._logged("reload_refused", before, {"problems": error.problems}, why, None)
        except (ServiceError, StoreError) as error:
            _log.error("configuration refused (%s): %s", why, error)

    async def _logged(self, what: str, before: str, after: dict[str, Any], why: str, by: str | None) -> None:
        row = {"ts": time.time(), "subject": "configuration", "what": what, "pool": None, "model": None}
        row |= {"before": {"digest": before}, "after": after, "reason": why, "by": by}
        await asyncio.shield(self._learner.change([row]))

    def _file_changed(self) -> bool:
        """Whether the file is another one than the last that was tried, and has been so for two looks."""
        if (stamp := self._source.stamp()) != self._stamp:
            self._stamp, self._settled = stamp, False
            return False
        if self._settled:
            return False
        self._settled = True
        return self._source.digest() not in ("", self._tried_digest)
