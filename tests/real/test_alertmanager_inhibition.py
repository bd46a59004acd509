"""A real Alertmanager with the shipped routing: one cause, one notification."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest

from moe_watch.provision import prometheus
from moe_watch.provision.alert import labels
from moe_watch.provision.catalogue import ALERTS
from tests.real.support import monitoring
from tests.real.support.monitoring import Webhook

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("prometheus-alertmanager") is None, reason="Alertmanager is not installed"),
]
BY_NAME = {alert.name: alert for alert in ALERTS}
_QUIET_S = 3.0  # several group intervals of the shortened configuration


@pytest.fixture
def hook() -> Iterator[Webhook]:
    """Listen for notifications."""
    with monitoring.webhook() as listening:
        yield listening


@pytest.fixture
def alertmanager(tmp_path: Path, hook: Webhook) -> Iterator[str]:
    """Run Alertmanager as provisioned, with waits of a second instead of minutes."""
    config = prometheus.alertmanager(f"{hook.url}/page", f"{hook.url}/ticket")
    config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    with monitoring.alertmanager(tmp_path, config) as address:
        yield address


def fire(address: str, names: Iterable[str], replicas: Iterable[str] = ("vllm-0",)) -> None:
    """Post alerts as Prometheus would."""
    alerts = [
        {"labels": {"alertname": name, "model": "m", "replica": replica, **labels(BY_NAME[name])}}
        for name in names
        for replica in replicas
    ]
    httpx.post(f"http://{address}/api/v2/alerts", json=alerts).raise_for_status()


def settle(hook: Webhook) -> None:
    """Return when notifications have come and no more came for a while."""
    monitoring.wait_until(lambda: bool(hook.arrived), "a notification")
    seen = -1
    while seen != len(hook.arrived):
        seen = len(hook.arrived)
        monitoring.time.sleep(_QUIET_S)


def test_a_broken_router_sends_one_page_and_no_ticket(alertmanager: str, hook: Webhook) -> None:
    """Canaries, drift, quality, OOD rate and imbalance fire; the canaries' page is the only notification."""
    fire(
        alertmanager, ["CanaryChanged", "RoutingDrift", "QualityGap", "TrafficDrift", "OODRateHigh", "ExpertImbalance"]
    )
    settle(hook)
    assert [path for path, _ in hook.arrived] == ["/page"]
    assert hook.names("firing") == {"CanaryChanged"}


def test_a_dead_tap_sends_one_page(alertmanager: str, hook: Webhook) -> None:
    """Nothing that rests on missing data is told."""
    fire(alertmanager, ["TapDown", "FramesDropped", "OODRateHigh", "BaselineStale", "RoutingDrift"])
    settle(hook)
    assert [(path, len(body["alerts"])) for path, body in hook.arrived] == [("/page", 1)]
    assert hook.names("firing") == {"TapDown"}


def test_another_replicas_trouble_is_not_silenced(alertmanager: str, hook: Webhook) -> None:
    """Causes silence effects on their own replica only."""
    fire(alertmanager, ["TapDown"], ["vllm-0"])
    fire(alertmanager, ["OODRateHigh"], ["vllm-1"])
    settle(hook)
    assert hook.names("firing", "/page") == {"TapDown"}
    assert hook.names("firing", "/ticket") == {"OODRateHigh"}


def test_a_bad_rollout_to_many_replicas_sends_one_page(alertmanager: str, hook: Webhook) -> None:
    """Fifty replicas of one model are one incident and one notification."""
    fire(alertmanager, ["CanaryChanged"], [f"vllm-{n}" for n in range(50)])
    settle(hook)
    ((path, body),) = hook.arrived
    assert path == "/page"
    assert len(body["alerts"]) == 50
