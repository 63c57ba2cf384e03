"""How the parts of one worker hear of the others': breakers, reloads, what operators say, and metrics of all.

Only puts parts together: what each does with what it hears is its own. With one process there is nobody to meet.
"""

from __future__ import annotations

import functools
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

from serving.traffic import drain, faults
from serving.workers.merged_metrics import AllMetrics
from serving.workers.news import BREAKER
from serving.workers.siblings import Siblings

if TYPE_CHECKING:
    from serving.generation import Lasting
    from serving.reload import Reloader

__all__ = ["meet"]

_RELOADED: Final = "reload"  # the topic
_MODELS: Final = "models"  # the subject of rows that say that one came or went
_CACHE: Final = "cache"  # of those that say that kept answers were dropped


async def meet(lasting: Lasting, reloader: Reloader, stack: AsyncExitStack) -> None:
    """Tell the others and hear them, until `stack` ends that."""
    shared, told, news = lasting.opened.shared, lasting.opened.told, lasting.news
    if shared is not None and news is not None:
        shared.subscribe(BREAKER, news.heard)
        shared.subscribe(_RELOADED, lambda message: reloader.heard(message.decode()))
        reloader.tell = lambda digest: shared.publish(_RELOADED, digest.encode())
        reloader.catch_up()
        lasting.learner.heard = {
            faults.SUBJECT: lasting.faults.heard,
            drain.SUBJECT: lasting.drain.heard,
            _MODELS: lambda row: news.changed(row["model"], lasting.learner.roster.model(row["model"])),
            _CACHE: lambda row: _purged(lasting, row["pool"]),
        }
    if told is not None:
        shown = AllMetrics(lasting.metrics, told.index)
        siblings = Siblings(told, shown.own)
        lasting.metrics.of_all = functools.partial(shown.of_all, siblings)
        await stack.enter_async_context(siblings.listening())


def _purged(lasting: Lasting, pool: str) -> None:
    """Another worker was asked to drop what a pool keeps: what is kept here goes, too."""
    caching = lasting.metrics.state.caching
    if caching is not None and pool in caching.shelves:
        caching.purge(pool)
