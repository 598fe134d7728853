"""What the reader chooses: where the data is, and which release."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import VariableHide, VariableRefresh, VariableSort

from deploy.monitoring.queries import SOURCE

SEEN = "percore_gateway_connections_limit"
"""Every gateway exports it, whatever else is wrong."""


def datasource() -> DatasourceVariable:
    """Return the choice of a Prometheus."""
    return DatasourceVariable("datasource").label("Data source").type("prometheus")


def namespace() -> QueryVariable:
    """Return the choice of a namespace that has a release."""
    return _values("namespace", f"label_values({SEEN}, namespace)").label("Namespace")


def release() -> QueryVariable:
    """Return the choice of a release in it."""
    query = f'label_values({SEEN}{{namespace="$namespace"}}, app_kubernetes_io_instance)'
    return _values("release", query).label("Release")


def full() -> QueryVariable:
    """Return the name that its objects' names are made from: looked up, since the release's does not always tell it."""
    query = f'label_values({SEEN}{{namespace="$namespace",app_kubernetes_io_instance="$release"}}, service)'
    return _values("full", query).regex("/^(.*)-gateway$/").hide(VariableHide.HIDE_VARIABLE)


def _values(name: str, query: str) -> QueryVariable:
    variable = QueryVariable(name).query(query).datasource(SOURCE).allow_custom_value(False)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
