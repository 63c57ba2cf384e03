"""`/metrics` of all workers of a machine, by whichever of them is asked.

What is a worker's own has its number in the label `worker`. Counters are not added up here: a sum falls when one worker
starts anew, or does not answer for once, and Prometheus would take that for a reset of all. What is folded from the
common stream is the same in each, and shown once. Knows names of metrics alone, not what they count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client import Metric

if TYPE_CHECKING:
    from serving.metrics import Metrics
    from serving.workers.siblings import Siblings

__all__ = ["ONE_FOR_ALL", "AllMetrics", "labelled", "merged"]

ONE_FOR_ALL: Final = frozenset(
    f"pointsman_{name}"
    for name in (
        "budget_left_ratio",
        "budget_left_tokens",
        "budget_left_usd",
        "budget_members",
        "canary_held",
        "canary_phase",
        "canary_share_ratio",
        "filter_state",
        "learning_state",
        "pacer_multiplier",
        "pacer_spent_ratio",
        "slo_target_ratio",
    )
)
_HEAD: Final = b"# HELP "


class AllMetrics:
    """Those of worker `index` and of its siblings."""

    def __init__(self, metrics: Metrics, index: int) -> None:
        self._metrics, self._index = metrics, index

    async def own(self) -> bytes:
        """What this worker shows its siblings."""
        return await self._rendered(shared=False)

    async def of_all(self, siblings: Siblings) -> bytes:
        """What it shows Prometheus."""
        others = await siblings.metrics()
        up = {self._index: True} | {index: text is not None for index, text in others.items()}
        own = await self._rendered(shared=True, up=up)
        return await asyncio.to_thread(merged, [own, *(text for text in others.values() if text is not None)])

    async def _rendered(self, *, shared: bool, up: dict[int, bool] | None = None) -> bytes:
        collected = self._metrics.collected()  # on the loop's thread: the numbers change there
        shown = labelled(collected, self._index, shared=shared)
        if up is not None:
            shown.append(self._metrics.worker_up(up))
        return await asyncio.to_thread(self._metrics.render, shown)


def labelled(families: Iterable[Metric], worker: int, *, shared: bool) -> list[Metric]:
    """What is that worker's own, with its number; with `shared` also what all have in common, as it is."""
    shown, mark = [], {"worker": str(worker)}
    for family in families:
        if family.name in ONE_FOR_ALL:
            shown += [family] if shared else []
            continue
        marked = Metric(family.name, family.documentation, family.type, family.unit)
        marked.samples = [sample._replace(labels=sample.labels | mark) for sample in family.samples]
        shown.append(marked)
    return shown


def merged(texts: Iterable[bytes]) -> bytes:
    """Expositions as one, each family in one place, as the text format wants it.

    They are this program's own, so their lines need no parsing: that takes twice what making them does.
    """
    families: dict[bytes, list[bytes]] = {}
    for text in texts:
        for block in text.removeprefix(_HEAD).split(b"\n" + _HEAD) if text else ():
            about, kind, *samples = block.rstrip(b"\n").split(b"\n")
            lines = families.setdefault(about.split(b" ", 1)[0], [_HEAD + about, kind])
            lines += samples
    return b"\n".join(line for lines in families.values() for line in lines) + b"\n"
