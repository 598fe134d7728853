"""Puts the rows together; ``page`` is what ``make update`` writes into the chart."""

from __future__ import annotations

import json

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard, DashboardCursorSync, Panel
from grafana_foundation_sdk.models.prometheus import Dataquery

from deploy.monitoring import variables
from deploy.monitoring.queries import NAMESPACE
from deploy.monitoring.rows import autoscaling, calls, gateway, headline, pods, stored_calls, waits

ROWS = {
    "Headline": headline.panels,
    "Calls": calls.panels,
    "Queue time and run time": waits.panels,
    "Autoscaling": autoscaling.panels,
    "Pods": pods.panels,
    "Gateway": gateway.panels,
    "Stored calls": stored_calls.panels,
}


def build(*, clusters: bool = False) -> Dashboard:
    """Return the dashboard; panels are numbered in their order. With ``clusters`` the reader chooses a cluster too."""
    builder = dashboard.Dashboard("percore").uid("percore").tags(["percore"]).timezone("browser")
    builder = builder.description("One call, one core: whether calls are queued, why, and how they end.")
    builder = builder.time("now-1h", "now").refresh("30s").tooltip(DashboardCursorSync.CROSSHAIR).editable()
    chosen = [variables.datasource(), *([variables.cluster()] if clusters else []), variables.namespace(), variables.release()]
    for variable in chosen:
        builder = builder.with_variable(variable)
    for title, panels in ROWS.items():
        builder = builder.with_row(dashboard.Row(title))
        for panel in panels():
            builder = builder.with_panel(panel)
    built = builder.build()
    for number, each in enumerate(built.panels or [], start=1):
        each.id_val = number
        if isinstance(each, Panel) and each.interval:
            for target in each.targets or []:
                if isinstance(target, Dataquery):
                    target.interval = each.interval
    return built


def page(*, clusters: bool = False) -> str:
    """Return the dashboard as JSON.

    ``clusters``: whether the Prometheus has several clusters. Then the label ``cluster`` of a series names its cluster.
    """
    text = json.dumps(build(clusters=clusters), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
    if not clusters:
        return text
    # Every query and every variable selects the namespace, so the cluster is selected beside it.
    of_cluster = text.replace(_quoted(NAMESPACE), _quoted(f'cluster="$cluster",{NAMESPACE}'))
    return of_cluster.replace(
        f"label_values({variables.ALWAYS_EXPORTED}, namespace)",
        _quoted(f'label_values({variables.ALWAYS_EXPORTED}{{cluster="$cluster"}}, namespace)'),
    )


def _quoted(text: str) -> str:
    """Return a text as it is inside a string of JSON."""
    return json.dumps(text)[1:-1]
