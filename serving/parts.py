"""What the handlers have their work done by, all of it made of one configuration; a reload makes another.

Only a list: it must never do anything, nor know a route.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.access.budget_desk import BudgetDesk
    from serving.access.tiers import Tiers
    from serving.access.usage import Usage
    from serving.admin import AdminDesk
    from serving.admin_keys import KeyDesk
    from serving.admission import Admission
    from serving.benchmarks import BenchmarkDesk
    from serving.dashboard.handlers import Dashboard
    from serving.feedback import FeedbackDesk
    from serving.history import History
    from serving.intake import Intake
    from serving.learner import Learner
    from serving.log_export import LogExport
    from serving.matrix import Matrix
    from serving.metrics import Metrics
    from serving.operator_desk import OperatorDesk
    from serving.routing import Routing
    from serving.settings import ServerSettings
    from serving.traffic.drain import Drain
    from serving.traffic.faults import Faults
    from serving.traffic.pool_desk import PoolDesk

__all__ = ["Parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the handlers have the work done by; all of them are made of one configuration."""

    server: ServerSettings
    admission: Admission
    routing: Routing
    desk: FeedbackDesk
    admin: AdminDesk
    keys: KeyDesk
    tiers: Tiers
    benchmarks: BenchmarkDesk
    matrix: Matrix
    export: LogExport
    pools: PoolDesk
    budgets: BudgetDesk
    usage: Usage
    dashboard: Dashboard
    history: History
    operator: OperatorDesk
    drain: Drain
    faults: Faults
    learner: Learner
    metrics: Metrics
    intake: Intake
