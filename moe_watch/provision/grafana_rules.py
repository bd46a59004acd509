"""The alerts as Grafana-managed rules, for those without a Prometheus Alertmanager.

Grafana's own Alertmanager has no inhibition, so a cause silences its effects inside the effect's expression.
"""

from __future__ import annotations

import json
from typing import Any, Final

from grafana_foundation_sdk.builders import alerting, expr, prometheus
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.alerting import RelativeTimeRange
from grafana_foundation_sdk.models.common import DataSourceRef

from moe_watch.provision import catalogue, inhibition
from moe_watch.provision.alert import Alert, Links, labels, notes
from moe_watch.provision.prometheus import GROUPS, panel_of

FOLDER_UID: Final = "moe-watch"
FOLDER_TITLE: Final = "moe-watch"
CONTACT_POINT: Final = "moe-watch"
CONTACT_UID: Final = "moe-watch-page"
_INTERVAL_S: Final = 60
_LOOK_BACK_S: Final = 600
_BY_NAME: Final = {alert.name: alert for alert in catalogue.ALERTS}


def groups(links: Links, datasource: str, *, contact: bool) -> list[dict[str, Any]]:
    """Return the rule groups as Grafana's provisioning API has them.

    ``datasource`` is the uid of the Prometheus to ask. With ``contact`` the rules notify the contact point
    ``moe-watch`` directly and the organisation's notification policies stay untouched; without, policies decide.
    """
    made = []
    for name, alerts in GROUPS.items():
        group = alerting.RuleGroup(name).folder_uid(FOLDER_UID).interval(_INTERVAL_S)
        for alert in alerts:
            group = group.with_rule(_rule(alert, name, links, datasource, contact=contact))
        made.append(json.loads(json.dumps(group.build(), cls=JSONEncoder)))
    return made


def expression(alert: Alert) -> str:
    """Return the alert's expression, empty also while one of its causes fires."""
    causes = [_BY_NAME[name].expr for name in inhibition.silencers(alert.name)]
    if not causes:
        return alert.expr
    any_cause = " or ".join(f"({cause})" for cause in causes)
    return f"({alert.expr}) unless on ({', '.join(inhibition.EQUAL)}) ({any_cause})"


def uid(alert: Alert) -> str:
    """Return the rule's uid, the same at every push."""
    return f"moe-watch-{alert.name.lower()}"


def _rule(alert: Alert, group: str, links: Links, datasource: str, *, contact: bool) -> alerting.Rule:
    rule = (
        alerting.Rule(alert.name)
        .uid(uid(alert))
        .folder_uid(FOLDER_UID)
        .rule_group(group)
        .org_id(1)
        .condition("B")
        .with_query(_query(alert, datasource))
        .with_query(_any_number())
        .for_val(alert.wait)
        # No series means that nothing is wrong; that there is any series at all is TapDown's business.
        .no_data_state("OK")
        .exec_err_state("Error")
        .labels(labels(alert))
        .annotations(_annotations(alert, links))
    )
    if contact:
        rule = rule.notification_settings(
            alerting.NotificationSettings()
            .receiver(CONTACT_POINT)
            .group_by(["grafana_folder", "alertname", "incident", "model"])
        )
    return rule


def _query(alert: Alert, datasource: str) -> alerting.Query:
    source = DataSourceRef(type_val="prometheus", uid=datasource)
    return (
        alerting.Query("A")
        .datasource_uid(datasource)
        .relative_time_range(RelativeTimeRange(from_val=_LOOK_BACK_S, to=0))
        .model(prometheus.Dataquery().expr(expression(alert)).instant().ref_id("A").datasource(source))
    )


def _any_number() -> alerting.Query:
    """Return the condition: the query has a value, whichever; TapDown's is 0."""
    math = expr.TypeMath().expression("is_number($A)").ref_id("B")
    return (
        alerting.Query("B")
        .datasource_uid("__expr__")
        .relative_time_range(RelativeTimeRange(from_val=_LOOK_BACK_S, to=0))
        .model(math.datasource(DataSourceRef(type_val="__expr__", uid="__expr__")))
    )


def _annotations(alert: Alert, links: Links) -> dict[str, str]:
    made = notes(alert, links, panel_of(alert))
    return {name: text.replace("$value", "$values.A.Value") for name, text in made.items()}
