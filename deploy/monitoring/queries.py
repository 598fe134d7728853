"""What queries have in common: whose series they read, and which codes count as what.

A query reads either percore's own series or those of Kubernetes (kube-state-metrics, cAdvisor), never both. So if a cluster
has no kube-state-metrics or cAdvisor, only the panels about Kubernetes are empty.
"""

from __future__ import annotations

from collections.abc import Iterable

from grafana_foundation_sdk.builders import prometheus
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
FAILED = "429|500|502|503|504|5xx"
"""The same codes as in the recording rules; a test compares them."""
VALID = f"200|2xx|3xx|{FAILED}"

NAMESPACE = 'namespace="$namespace"'
GATEWAY = NAMESPACE + ',service="${full}-gateway"'
STATUS_SERVER = NAMESPACE + ',service="${full}-inference"'
DEPLOYMENT = NAMESPACE + ',deployment="${full}-inference"'
HPA = NAMESPACE + ',horizontalpodautoscaler="${full}-inference"'
# A Deployment names its pods by a hash of the revision and five letters. If the name is long, there is no dash between them.
PODS = NAMESPACE + ',pod=~"${full}-inference-[0-9a-z]+(-[0-9a-z]{5})?"'
GATEWAY_PODS = NAMESPACE + ',pod=~"${full}-gateway-[0-9a-z]+(-[0-9a-z]{5})?"'
WORKER = PODS + ',container="inference"'


def line(expr: str, legend: str) -> prometheus.Dataquery:
    """Return a query for a line over time."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).range().datasource(SOURCE)


def number(expr: str, legend: str = "") -> prometheus.Dataquery:
    """Return a query for the number at the end of the time range."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).instant().datasource(SOURCE)


def column(expr: str) -> prometheus.Dataquery:
    """Return a query for a column of a table."""
    return number(expr).format(PromQueryFormat.TABLE)


def cells(expr: str) -> prometheus.Dataquery:
    """Return a query for a heatmap: a series for each bucket."""
    return line(expr, "{{le}}").format(PromQueryFormat.HEATMAP)


def quantiles(histogram: str, labels: str, of: Iterable[int] = (50, 95, 99), prefix: str = "") -> list[prometheus.Dataquery]:
    """Return a line for each percentile of a histogram."""
    buckets = f"sum by (le) (rate({histogram}_bucket{{{labels}}}[$__rate_interval]))"
    return [line(f"histogram_quantile({percent / 100}, {buckets})", f"{prefix}p{percent}") for percent in of]


def a_minute(counter: str, labels: str, by: str) -> str:
    """Return how often a counter rises in a minute. If calls last minutes, a rate per second would be close to zero."""
    return f"60 * sum by ({by}) (rate({counter}{{{labels}}}[$__rate_interval]))"
