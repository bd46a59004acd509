"""What ``moe-watch provision --out`` writes: one folder for each of Prometheus, Alertmanager and Grafana."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from moe_watch.provision import assets, grafana_rules, prometheus
from moe_watch.provision.alert import Links
from moe_watch.provision.prometheus import to_yaml

Alerting = Literal["prometheus", "grafana"]
DATASOURCE_UID: Final = "moe-watch-prometheus"
EXAMPLE_PAGE_URL: Final = f"{prometheus.EXAMPLE_PAGER}/page"
_NOTE: Final = "Made by `moe-watch provision`; run it again instead of editing."
_PROVIDER_FOLDER: Final = "/etc/grafana/provisioning/dashboards/moe-watch"


@dataclass(frozen=True, kw_only=True)
class Site:
    """What provisioning must know of the place where it lands."""

    links: Links = field(default_factory=Links)
    sidecars: Sequence[str] = ("moe-watch:9465",)
    vllm: Mapping[str, str] = field(default_factory=lambda: {"vllm-0": "vllm:8000"})  # replica -> host:port
    prometheus_url: str = "http://prometheus:9090"
    page_url: str | None = None
    ticket_url: str | None = None
    alerting: Alerting = "prometheus"


def layout(site: Site) -> dict[str, str]:
    """Return every file's text by its path below the output folder."""
    page = site.page_url or EXAMPLE_PAGE_URL
    texts = {
        "prometheus/prometheus.yml": to_yaml(_scrape(site), _NOTE),
        f"prometheus/rules/{prometheus.RULES_FILE}": to_yaml(prometheus.rules(site.links), _NOTE),
        "alertmanager/alertmanager.yml": to_yaml(prometheus.alertmanager(page, site.ticket_url or page), _NOTE),
        "grafana/datasources/moe-watch.yml": to_yaml(_datasource(site), _NOTE),
        "grafana/dashboards/moe-watch.yml": to_yaml(_provider(), _NOTE),
        "grafana/alerting/moe-watch-contact.yml": to_yaml(_contact(site), _NOTE),
        "grafana/alerting/moe-watch-rules.yml": to_yaml(_managed_rules(site), _NOTE + _paused_note(site)),
    }
    for uid, content in assets.dashboards().items():
        texts[f"grafana/dashboards/moe-watch/{uid}.json"] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return texts | {f"runbooks/{name}.md": text for name, text in assets.runbooks().items()}


def _scrape(site: Site) -> dict[str, Any]:
    """Return Prometheus' configuration; without an Alertmanager where Grafana does the alerting."""
    made = prometheus.scrape(site.sidecars, site.vllm)
    if site.alerting == "grafana":
        del made["alerting"]
    return made


def _datasource(site: Site) -> dict[str, Any]:
    source = {
        "name": "Prometheus (moe-watch)",
        "uid": DATASOURCE_UID,
        "type": "prometheus",
        "access": "proxy",
        "url": site.prometheus_url,
        "jsonData": {"timeInterval": prometheus.SCRAPE_INTERVAL},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _provider() -> dict[str, Any]:
    provider = {
        "name": "moe-watch",
        "folder": grafana_rules.FOLDER_TITLE,
        "folderUid": grafana_rules.FOLDER_UID,
        "type": "file",
        "allowUiUpdates": False,
        "options": {"path": _PROVIDER_FOLDER},
    }
    return {"apiVersion": 1, "providers": [provider]}


def contact_point(url: str) -> dict[str, Any]:
    """Return the contact point as Grafana's API has it: a webhook at ``url``."""
    return {
        "uid": grafana_rules.CONTACT_UID,
        "name": grafana_rules.CONTACT_POINT,
        "type": "webhook",
        "settings": {"url": url},
        "disableResolveMessage": False,
    }


def _contact(site: Site) -> dict[str, Any]:
    point = contact_point(site.page_url or EXAMPLE_PAGE_URL)
    name = point.pop("name")
    return {"apiVersion": 1, "contactPoints": [{"orgId": 1, "name": name, "receivers": [point]}]}


def _managed_rules(site: Site) -> dict[str, Any]:
    groups = grafana_rules.groups(site.links, DATASOURCE_UID, contact=True)
    return {"apiVersion": 1, "groups": [_file_group(group, paused=site.alerting != "grafana") for group in groups]}


def _file_group(group: dict[str, Any], *, paused: bool) -> dict[str, Any]:
    """Return a rule group in the form of Grafana's files, which differs from its API's in a few keys."""
    api_only = {"folderUID", "ruleGroup", "orgID"}
    rules = [{k: v for k, v in rule.items() if k not in api_only} | {"isPaused": paused} for rule in group["rules"]]
    folder = grafana_rules.FOLDER_TITLE
    return {"orgId": 1, "name": group["title"], "folder": folder, "interval": f"{group['interval']}s", "rules": rules}


def _paused_note(site: Site) -> str:
    if site.alerting == "grafana":
        return ""
    return "\nPaused: Prometheus and Alertmanager do the alerting; `--alerting grafana` turns it round."
