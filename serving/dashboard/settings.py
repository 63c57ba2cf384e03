"""The settings of the dashboard.

Owns their ranges and defaults. It must never know what is shown.
"""

from __future__ import annotations

from pydantic import Field

from serving.config_values import Count, Section

__all__ = ["DashboardSettings"]


class DashboardSettings(Section):
    """The page at /dashboard and its live feed."""

    max_listeners: Count = Field(
        default=16, ge=1, le=1_000, description="Most open pages that are fed at a time; one more gets 503."
    )
