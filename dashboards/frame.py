"""What every dashboard has: its variables, its annotations, the links to the others, and rows laid out from the top."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from grafana_foundation_sdk.builders import dashboard, prometheus
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from moe_watch.provision.catalogue import ALERTS

from .panels import MOE_WATCH, SOURCE, Panel

TAG: Final = "moe-watch"
_EVERYTHING: Final = ".*"  # also matches series without the label, such as vLLM's where no replica is set


@dataclass(frozen=True)
class Row:
    """A titled stretch of panels."""

    title: str
    panels: Sequence[Panel]


def build(uid: str, title: str, description: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the dashboard's JSON; panels are numbered from 1 in the order of the page."""
    made = (
        dashboard.Dashboard(f"moe-watch / {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .time("now-3h", "now")
        .refresh("30s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
    )
    for variable in _variables():
        made = made.with_variable(variable)
    for annotation in _annotations():
        made = made.annotation(annotation)
    made = made.link(_link())
    panel_id = 0
    for row in rows:
        panel_id += 1
        made = made.with_row(dashboard.Row(row.title).id(panel_id))
        for panel in row.panels:
            panel_id += 1
            made = made.with_panel(panel.id(panel_id))
    return encode(made)


def encode(made: Any) -> dict[str, Any]:
    """Return what a builder builds as plain JSON."""
    content: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    return content


def _variables() -> list[Any]:
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    return [
        source,
        _labels("model", "moe_watch_tap_up"),
        _labels("replica", 'moe_watch_tap_up{model=~"$model"}'),
        _labels("baseline", f"moe_watch_baseline_info{{{MOE_WATCH}}}"),
    ]


def _labels(name: str, metric: str) -> Any:
    query = f"label_values({metric}, {name})"
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .definition(query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.NATURAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(_EVERYTHING)
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _annotations() -> list[Any]:
    alerts = "|".join(alert.name for alert in ALERTS)
    promoted = (
        f"(moe_watch_baseline_promoted_timestamp_seconds{{{MOE_WATCH}}} > 0) * on (model, replica) group_left "
        f"(baseline) "
        f'moe_watch_baseline_info{{{MOE_WATCH}, baseline=~"$baseline"}} * 1000'
    )
    events = f"sum by (replica, kind) (increase(moe_watch_events_total{{{MOE_WATCH}}}[2m])) > 0"
    firing = f'ALERTS{{alertname=~"{alerts}", alertstate="firing", {MOE_WATCH}}}'
    return [
        _annotation(
            "Baselines", promoted, "green", "Baseline {{baseline}} promoted", "{{model}} on {{replica}}"
        ).use_value_for_time(use_value_for_time=True),
        _annotation("Restarts and rebalances", events, "blue", "{{kind}}", "{{replica}}"),
        _annotation("Alerts", firing, "red", "{{alertname}}", "{{severity}}: {{model}} on {{replica}}"),
    ]


def _annotation(name: str, expr: str, color: str, title: str, text: str) -> Any:
    target = prometheus.Dataquery().expr(expr).ref_id("A").range().datasource(SOURCE)
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(enable=True)
        .icon_color(color)
        .target(target)
        .expr(expr)
        .title_format(title)
        .text_format(text)
        .step("60s")
    )


def _link() -> Any:
    return (
        dashboard.DashboardLink("moe-watch")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(as_dropdown=False)
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
        .tooltip("The other dashboards, at the same time and with the same variables")
    )
