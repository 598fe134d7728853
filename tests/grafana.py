"""Does to a query what Grafana does before it asks Prometheus: for tests, which ask the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel
from grafana_foundation_sdk.models.prometheus import Dataquery

VARIABLE = re.compile(r"\$\{(\w+)\}|\$(\w+)")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of one panel."""

    panel: str
    kind: str
    legend: str
    expr: str

    def filled(self, values: Mapping[str, str]) -> str:
        """Return the query as Prometheus gets it; raise KeyError where a variable has no value."""
        return VARIABLE.sub(lambda found: values[found[1] or found[2]], self.expr)


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
                yield Query(panel.title or "", panel.type_val, target.legend_format or "", target.expr or "")
