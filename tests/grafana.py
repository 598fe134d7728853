"""Fills in the variables of the dashboard's queries, as Grafana does before it asks Prometheus."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel
from grafana_foundation_sdk.models.prometheus import Dataquery

VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")
SOURCE_SECONDS = 15
"""The default interval of scrapes in a data source of Grafana."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel."""

    panel: str
    legend: str
    expr: str
    rate_interval: str

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the query as Prometheus gets it; raise KeyError if a variable has no value."""
        known = {"__rate_interval": self.rate_interval, "__interval": "1m", **values}
        return VARIABLE.sub(lambda found: known[found[1] or found[2]], self.expr)


def panels(dashboard: Dashboard) -> Iterator[Panel]:
    """Yield every panel that is not a row."""
    for each in dashboard.panels or []:
        if isinstance(each, Panel):
            yield each


def queries(dashboard: Dashboard) -> Iterator[Query]:
    """Yield every query, in the order of the panels."""
    for panel in panels(dashboard):
        for target in panel.targets or []:
            if isinstance(target, Dataquery):
                # Four scrapes, or four times the smallest step that the query names.
                rate = f"{4 * (60 if target.interval == '1m' else SOURCE_SECONDS)}s"
                yield Query(panel.title or "", target.legend_format or "", target.expr or "", rate)
