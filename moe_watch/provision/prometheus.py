"""The alerts as Prometheus rules, and the configuration of Prometheus and Alertmanager around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml

from moe_watch.provision import catalogue, inhibition, thresholds
from moe_watch.provision.alert import Alert, Links, labels, notes

GROUPS: Final = {
    "moe-watch-model": catalogue.MODEL,
    "moe-watch-traffic": catalogue.TRAFFIC,
    "moe-watch-serving": catalogue.SERVING,
    "moe-watch-monitor": catalogue.MONITOR,
    "moe-watch-fleet": catalogue.FLEET,
}
RULES_FILE: Final = "moe-watch.rules.yml"
EXAMPLE_PAGER: Final = "http://pager.example/moe-watch"
SCRAPE_INTERVAL: Final = "15s"


def panel_of(alert: Alert) -> int:
    """Return the panel of the runbook dashboard that holds the alert's runbook."""
    return catalogue.ALERTS.index(alert) + 1


def rules(links: Links) -> dict[str, Any]:
    """Return the rule file's content, one group per family of alerts."""
    return {
        "groups": [
            {"name": name, "interval": thresholds.EVALUATION_INTERVAL, "rules": [_rule(a, links) for a in group]}
            for name, group in GROUPS.items()
        ]
    }


def _rule(alert: Alert, links: Links) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.wait,
        "labels": labels(alert),
        "annotations": notes(alert, links, panel_of(alert)),
    }


def scrape(sidecars: Sequence[str], vllm: Mapping[str, str]) -> dict[str, Any]:
    """Return ``prometheus.yml`` for sidecars (``host:port``) and vLLM servers (replica name -> ``host:port``).

    vLLM's series say nothing of the replica: the target's label does, and must be the tap's ``MOE_WATCH_REPLICA``.
    """
    return {
        "global": {
            "scrape_interval": SCRAPE_INTERVAL,
            "evaluation_interval": thresholds.EVALUATION_INTERVAL,
        },
        "rule_files": [f"rules/{RULES_FILE}"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": ["alertmanager:9093"]}]}]},
        "scrape_configs": [
            {"job_name": "moe-watch", "static_configs": [{"targets": list(sidecars)}]},
            {
                "job_name": "vllm",
                "static_configs": [
                    {"targets": [address], "labels": {"replica": name}} for name, address in vllm.items()
                ],
            },
        ],
    }


def alertmanager(page_url: str, ticket_url: str) -> dict[str, Any]:
    """Return ``alertmanager.yml``: one notification per incident and model, effects silenced by their cause."""
    return {
        "route": {
            "receiver": "moe-watch-ticket",
            "group_by": ["incident", "model"],
            "group_wait": "30s",
            "group_interval": "5m",
            "repeat_interval": "12h",
            "routes": [
                {"matchers": ['severity="critical"'], "receiver": "moe-watch-page", "repeat_interval": "4h"},
            ],
        },
        "inhibit_rules": [
            {
                "source_matchers": [f'alertname="{source}"'],
                "target_matchers": [f'alertname=~"{"|".join(targets)}"'],
                "equal": list(inhibition.EQUAL),
            }
            for source, targets in inhibition.SILENCES.items()
        ],
        "receivers": [
            {"name": "moe-watch-page", "webhook_configs": [{"url": page_url, "send_resolved": True}]},
            {"name": "moe-watch-ticket", "webhook_configs": [{"url": ticket_url, "send_resolved": True}]},
        ],
    }


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, so that a dashboard in a ConfigMap can be read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(content: Any, comment: str = "") -> str:
    """Return ``content`` as YAML in the order it was made, below ``comment``."""
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
