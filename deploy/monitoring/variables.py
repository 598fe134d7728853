"""What the reader chooses: where the data is, and which release."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import DatasourceVariable, QueryVariable
from grafana_foundation_sdk.models.dashboard import VariableRefresh, VariableSort

from deploy.monitoring.queries import SOURCE

ALWAYS_EXPORTED = "percore_gateway_connections_limit"
"""Every gateway exports it, whatever else is wrong."""


def datasource() -> DatasourceVariable:
    """Return the choice of a Prometheus."""
    return DatasourceVariable("datasource").label("Data source").type("prometheus")


def cluster() -> QueryVariable:
    """Return the choice of a cluster that has a release."""
    return _values("cluster", f"label_values({ALWAYS_EXPORTED}, cluster)").label("Cluster")


def namespace() -> QueryVariable:
    """Return the choice of a namespace that has a release."""
    return _values("namespace", f"label_values({ALWAYS_EXPORTED}, namespace)").label("Namespace")


def release() -> QueryVariable:
    """Return the choice of a release in that namespace, by its full name: the beginning of the names of its objects.

    The name of the Helm release is not enough: in a parent chart, one release may install percore under several aliases.
    """
    query = f'label_values({ALWAYS_EXPORTED}{{namespace="$namespace"}}, service)'
    return _values("full", query).regex("/^(.*)-gateway$/").label("Release")


def _values(name: str, query: str) -> QueryVariable:
    variable = QueryVariable(name).query(query).datasource(SOURCE).allow_custom_value(False)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
