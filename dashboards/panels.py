"""The kinds of panel that the dashboards are made of, in one house style.

A query is an expression with a legend; ``$model``, ``$replica`` and ``$baseline`` are the dashboard's variables. Widths
are in Grafana's 24 columns, heights in its rows of 30 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    prometheus,
    stat,
    statetimeline,
    statushistory,
    timeseries,
)
from grafana_foundation_sdk.builders import table as table_panel
from grafana_foundation_sdk.builders import text as text_panel
from grafana_foundation_sdk.models import common as style
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import text as text_style

MOE_WATCH: Final = 'model=~"$model", replica=~"$replica"'
VLLM: Final = 'model_name=~"$model", replica=~"$replica"'
SOURCE: Final = style.DataSourceRef(type_val="prometheus", uid="${datasource}")

RED: Final = "red"
GREEN: Final = "green"
GREY: Final = "text"

Panel = Any  # a builder of one of the SDK's panel modules; they share no public type


@dataclass(frozen=True)
class Query:
    """One expression of a panel; ``legend`` is Grafana's template over the series' labels."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Limit:
    """The value where a panel turns red; ``above`` False: below it."""

    value: float
    above: bool = True


def series(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    limit: Limit | None = None,
    width: int = 12,
    height: int = 8,
    low: float | None = 0.0,
    high: float | None = None,
) -> Panel:
    """Return lines over time, with the alert's threshold drawn where there is one."""
    panel = _common(timeseries.Panel(), (title, description), queries, unit, (width, height))
    panel = (
        panel.fill_opacity(8)
        .line_width(1)
        .show_points(style.VisibilityMode.NEVER)
        .thresholds(_thresholds(limit))
        .tooltip(common.VizTooltipOptions().mode(style.TooltipDisplayMode.MULTI).sort(style.SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(style.LegendDisplayMode.LIST)
            .placement(style.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
        )
    )
    if limit is not None:
        panel = panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(style.GraphThresholdsStyleMode.DASHED))
    if low is not None:
        panel = panel.min(low)
    return panel if high is None else panel.max(high)


def number(
    title: str,
    description: str,
    query: Query,
    unit: str,
    *,
    limit: Limit | None = None,
    mappings: Sequence[Any] = (),
    width: int = 4,
    height: int = 4,
) -> Panel:
    """Return the latest value in large type, with its course behind it."""
    panel = _common(stat.Panel(), (title, description), [query], unit, (width, height))
    return (
        panel.thresholds(_thresholds(limit))
        .mappings(list(mappings))
        .color_mode(style.BigValueColorMode.VALUE)
        .graph_mode(style.BigValueGraphMode.NONE if mappings else style.BigValueGraphMode.AREA)
        .text_mode(style.BigValueTextMode.AUTO)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("none")
    )


def states(
    title: str, description: str, queries: Sequence[Query], mappings: Sequence[Any], *, width: int = 24
) -> Panel:
    """Return a timeline of named states, one bar a series."""
    panel = _common(statetimeline.Panel(), (title, description), queries, "none", (width, 6))
    return (
        panel.mappings(list(mappings))
        .merge_values(merge_values=True)
        .show_value(style.VisibilityMode.AUTO)
        .row_height(0.8)
    )


def grid(
    title: str, description: str, query: Query, unit: str, *, limit: Limit | None = None, width: int = 12
) -> Panel:
    """Return coloured cells: one row a layer, one column a moment."""
    panel = _common(statushistory.Panel(), (title, description), [query], unit, (width, 10))
    scheme = dashboard.FieldColor().mode(model.FieldColorModeId.CONTINUOUS_GR_YL_RD)
    if limit is not None:
        scheme = dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS)
    return (
        panel.color_scheme(scheme)
        .thresholds(_thresholds(limit))
        .show_value(style.VisibilityMode.NEVER)
        .row_height(0.9)
        .max_data_points(60)
        .min(0)
    )


def bars(
    title: str, description: str, query: Query, unit: str, *, limit: Limit | None = None, width: int = 12
) -> Panel:
    """Return one bar a series with its latest value."""
    panel = _common(bargauge.Panel(), (title, description), [query], unit, (width, 8), instant=True)
    return (
        panel.thresholds(_thresholds(limit))
        .orientation(style.VizOrientation.HORIZONTAL)
        .display_mode(style.BarGaugeDisplayMode.GRADIENT)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def table(
    title: str,
    description: str,
    queries: Sequence[Query],
    columns: dict[str, str],
    *,
    width: int = 12,
    height: int = 8,
    unit: str = "none",
) -> Panel:
    """Return the latest series as rows; ``columns`` are the labels and values to show, with their headings."""
    panel = _common(table_panel.Panel(), (title, description), queries, unit, (width, height), instant=True)
    order = {name: index for index, name in enumerate(columns)}
    return panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={})).with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={"includeByName": dict.fromkeys(columns, True), "indexByName": order, "renameByName": columns},
        )
    )


def markdown(title: str, content: str, *, width: int = 24, height: int = 8, description: str = "") -> Panel:
    """Return text."""
    panel = text_panel.Panel().title(title).span(width).height(height).mode(text_style.TextMode.MARKDOWN)
    return panel.content(content).description(description)


def mapping(states: dict[int, tuple[str, str]]) -> list[Any]:
    """Return the names and colours of a panel's whole-number values."""
    options = {
        str(value): model.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(states.items())
    }
    return [model.ValueMap(options=options)]


# Series whose points name a request and its trace; Grafana draws them as dots that lead there.
_EXEMPLIFIED: Final = re.compile(r"moe_watch_(time_to_first_token_seconds_bucket|ood_requests_total)\b")


def _common(
    panel: Panel,
    text: tuple[str, str],
    queries: Sequence[Query],
    unit: str,
    size: tuple[int, int],
    *,
    instant: bool = False,
) -> Panel:
    panel = panel.title(text[0]).description(text[1]).datasource(SOURCE).unit(unit).span(size[0]).height(size[1])
    for index, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + index))
        target = target.datasource(SOURCE)
        if instant:
            target = target.instant().format("table" if isinstance(panel, table_panel.Panel) else "time_series")
        else:
            target = target.range()
            if _EXEMPLIFIED.search(query.expr):
                target = target.exemplar(exemplar=True)
        panel = panel.with_target(target)
    return panel


def _thresholds(limit: Limit | None) -> Any:
    steps = [model.Threshold(value=None, color=GREEN)]
    if limit is not None and limit.above:
        steps.append(model.Threshold(value=limit.value, color=RED))
    elif limit is not None:
        steps = [model.Threshold(value=None, color=RED), model.Threshold(value=limit.value, color=GREEN)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)
