"""The kinds of panels, so that all of a kind look alike. Each has a title, a unit, and a description that says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode

from deploy.monitoring.queries import GATEWAY, SOURCE, a_minute, line

Panel = Builder[models.Panel]
Queries = Iterable[prometheus.Dataquery]
Steps = Mapping[float, str]
STAT_HEIGHT, HEIGHT = 4, 8
FEW_CALLS = "1m"
"""The shortest step of panels that count calls. A rate needs several calls, and a call may last minutes. Grafana computes
a rate over four steps of the query, so ``dashboard`` gives this step to each query of such a panel too."""


class _AnyPanel(Protocol):
    def title(self, title: str, /) -> Self: ...
    def description(self, description: str, /) -> Self: ...
    def datasource(self, datasource: models.DataSourceRef, /) -> Self: ...
    def unit(self, unit: str, /) -> Self: ...
    def height(self, h: int, /) -> Self: ...
    def span(self, w: int, /) -> Self: ...
    def with_target(self, target: prometheus.Dataquery, /) -> Self: ...


P = TypeVar("P", bound=_AnyPanel)


def number(title: str, description: str, unit: str, query: prometheus.Dataquery, steps: Steps | None = None) -> stat.Panel:
    """Return one number. Its colour tells whether it is good: ``steps`` has the lowest value of each colour."""
    panel = _with(stat.Panel(), title, description, unit, [query]).span(3).height(STAT_HEIGHT)
    shown = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"])).graph_mode(kinds.BigValueGraphMode.NONE)
    return shown.thresholds(_thresholds(steps or {}, base="green" if steps else "text")).no_value("none")


def lines(title: str, description: str, unit: str, queries: Queries, span: int = 8) -> timeseries.Panel:
    """Return lines over time, from zero up, with a legend that says the latest and the highest."""
    panel = _with(timeseries.Panel(), title, description, unit, queries).span(span)
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.TABLE).calcs(["lastNotNull", "max"])
    legend = legend.placement(kinds.LegendPlacement.BOTTOM).show_legend(True)
    shown = panel.legend(legend).min(0).fill_opacity(10).show_points(kinds.VisibilityMode.NEVER)
    return shown.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))


def rises_a_minute(title: str, description: str, counter: str, label: str) -> timeseries.Panel:
    """Return how often a counter of the gateway rises in a minute, one line for each value of a label."""
    query = line(a_minute(counter, GATEWAY, label), f"{{{{{label}}}}}")
    return lines(title, description, "cpm", [query]).interval(FEW_CALLS)


def steps_of(panel: timeseries.Panel) -> timeseries.Panel:
    """Draw counts as steps, because a count does not change between two samples."""
    return panel.line_interpolation(kinds.LineInterpolation.STEP_AFTER).decimals(0)


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Put the lines on top of each other, where their sum means something."""
    return panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL)).fill_opacity(40)


def limited(panel: timeseries.Panel, steps: Steps) -> timeseries.Panel:
    """Draw a line at each threshold."""
    style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(_thresholds(steps, base="green")).thresholds_style(style)


def distribution(title: str, description: str, query: prometheus.Dataquery) -> heatmap.Panel:
    """Return how many calls took how long, over time."""
    panel = _with(heatmap.Panel(), title, description, "short", [query]).span(12).interval(FEW_CALLS)
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    linear = common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LINEAR)
    return panel.color(colours).y_axis(heatmap.YAxisConfig().unit("s")).scale_distribution(linear).show_legend()


def states(
    title: str, description: str, query: prometheus.Dataquery, names: Mapping[int, tuple[str, str]]
) -> statetimeline.Panel:
    """Return a panel with a bar for each series. The colours of the bar show the states of the series over time."""
    panel = _with(statetimeline.Panel(), title, description, "none", [query]).span(12).mappings([mapping(names)])
    shown = panel.show_value(kinds.VisibilityMode.NEVER).row_height(0.8).merge_values(True).line_width(0).fill_opacity(70)
    legend = common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM)
    return shown.legend(legend.show_legend(True))


def rows(title: str, description: str, columns: Mapping[str, prometheus.Dataquery], units: Mapping[str, str]) -> table.Panel:
    """Return a row for each pod; a column without data is left out, and the others stay."""
    panel = _with(table.Panel(), title, description, "short", columns.values()).span(24).align(kinds.FieldTextAlignment.AUTO)
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    names = {f"Value #{chr(ord('A') + index)}": name for index, name in enumerate(columns)}
    order = {"pod": 0, **{value: 1 + index for index, value in enumerate(names)}}
    options = {"excludeByName": {"Time": True}, "renameByName": {**names, "pod": "Pod"}, "indexByName": order}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=options))
    for name, unit in units.items():
        panel = panel.override_by_name(name, [property_of("unit", unit)])
    return panel


def property_of(name: str, value: object) -> models.DynamicConfigValue:
    """Return a property that only one series or column of a panel has."""
    return models.DynamicConfigValue(id_val=name, value=value)


def mapping(names: Mapping[int, tuple[str, str]]) -> models.ValueMap:
    """Return names and colours of numbers."""
    results = {
        str(value): models.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(names.items())
    }
    return models.ValueMap(options=results)


def _with(panel: P, title: str, description: str, unit: str, queries: Queries) -> P:
    panel = panel.title(title).description(description).unit(unit).datasource(SOURCE).height(HEIGHT)
    for index, query in enumerate(queries):
        panel = panel.with_target(query.ref_id(chr(ord("A") + index)))
    return panel


def _thresholds(steps: Steps, base: str) -> dashboard.ThresholdsConfig:
    found = [models.Threshold(value=None, color=base)]
    found += [models.Threshold(value=value, color=colour) for value, colour in steps.items()]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(found)
