"""The service with its counting taken out (no option it has): what metrics and the dashboard cost is measured by it.

    python -m benchmarks.uncounted serve -c FILE

Everything else, the log and the stores included, is the service's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import Histogram

from serving.call_metrics import CallMetrics
from serving.cli import main
from serving.dashboard.live import Live
from serving.objectives import _Tally
from serving.spread import Spread


def _nothing(*_: Any, **__: Any) -> Sequence[Any]:
    return ()


if __name__ == "__main__":
    for kind, names in (
        (CallMetrics, ("decided", "attempt", "graded")),
        (Live, ("decided", "outcome", "feedback", "witness")),
        (_Tally, ("count",)),
        (Spread, ("observe",)),
        (Histogram, ("observe",)),
    ):
        for name in names:
            setattr(kind, name, _nothing)
    main()
