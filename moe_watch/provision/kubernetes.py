"""What ``moe-watch provision --format kubernetes`` writes: for the Prometheus operator and Grafana's sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from moe_watch.provision import assets, grafana_rules, prometheus
from moe_watch.provision.alert import Links
from moe_watch.provision.prometheus import to_yaml

NAME: Final = "moe-watch"
DEFAULT_SELECTOR: Final = {"app.kubernetes.io/name": NAME}
DASHBOARD_LABEL: Final = "grafana_dashboard"  # what the Grafana chart's sidecar looks for
_NOTE: Final = "Made by `moe-watch provision --format kubernetes`; run it again instead of editing."


def layout(links: Links, selector: Mapping[str, str]) -> dict[str, str]:
    """Return every manifest's text by its path; ``selector`` are labels of the pods with vLLM and the sidecar."""
    manifests = {"prometheusrule.yaml": rule(links), "podmonitor.yaml": pod_monitor(selector)}
    for uid, content in assets.dashboards().items():
        manifests[f"dashboards/{uid}.yaml"] = config_map(uid, content)
    return {path: to_yaml(manifest, _NOTE) for path, manifest in manifests.items()}


def rule(links: Links) -> dict[str, Any]:
    """Return the alerts as a PrometheusRule."""
    return _object("monitoring.coreos.com/v1", "PrometheusRule", NAME) | {"spec": prometheus.rules(links)}


def pod_monitor(selector: Mapping[str, str]) -> dict[str, Any]:
    """Return a PodMonitor that scrapes both containers, ports ``moe-watch`` and ``http`` (vLLM).

    The pod's name becomes vLLM's ``replica``, as it is the tap's where ``MOE_WATCH_REPLICA`` is the pod's name.
    """
    interval = prometheus.SCRAPE_INTERVAL
    relabel = [{"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "replica"}]
    endpoints = [
        {"port": "moe-watch", "path": "/metrics", "interval": interval},
        {"port": "http", "path": "/metrics", "interval": interval, "relabelings": relabel},
    ]
    spec = {"selector": {"matchLabels": dict(selector)}, "podMetricsEndpoints": endpoints}
    return _object("monitoring.coreos.com/v1", "PodMonitor", NAME) | {"spec": spec}


def config_map(uid: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return a dashboard in a ConfigMap that Grafana's sidecar loads."""
    made = _object("v1", "ConfigMap", uid)
    made["metadata"]["labels"][DASHBOARD_LABEL] = "1"
    made["metadata"]["annotations"] = {"grafana_folder": grafana_rules.FOLDER_TITLE}
    return made | {"data": {f"{uid}.json": json.dumps(content, indent=2, ensure_ascii=False)}}


def _object(version: str, kind: str, name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/component": "monitoring"}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}}
