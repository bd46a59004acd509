"""Every query of every dashboard on a real Prometheus that scrapes moe-watch's own export of every metric it has."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import start_http_server

from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board
from moe_watch.metrics.prometheus import registry
from moe_watch.metrics.series import Metric
from moe_watch.provision import assets, prometheus
from moe_watch.provision.alert import Links
from moe_watch.provision.catalogue import ALERTS
from tests.real.support import monitoring
from tests.support.grafana_view import Asked, fill, queries

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]
BUILT_IN = {"__rate_interval": "10s", "__interval": "5s", "__range": "1m"}
VALUES = {
    "model": ("tiny/moe",),
    "replica": ("vllm-0", "vllm.1"),
    "layer": ("2", "10"),
    "expert": ("7",),
    "kind": (*metrics.DRIFT_KINDS, *metrics.EVENT_KINDS),
    "channel": metrics.CHANNELS,
    "outcome": metrics.OUTCOMES,
    "reason": metrics.DROP_REASONS,
    "type": ("routing", "latency"),
    "context": metrics.CONTEXTS,
    "decile": ("1", "10"),
    "defect": ("repetition",),
    "baseline": ("1",),
}
CHOICES: dict[str, dict[str, list[str]]] = {
    "all": {"model": [], "replica": [], "baseline": []},
    "chosen": {"model": ["tiny/moe"], "replica": ["vllm-0", "vllm.1"], "baseline": ["1"]},
}


def rows(metric: Metric) -> Iterator[tuple[str, ...]]:
    """Yield labels for a metric: every combination of some values."""
    states = metrics.CANARY_VERDICTS if "canary" in metric.name else metrics.VERDICTS
    values = [states if label == "verdict" else VALUES.get(label, ("x",)) for label in metric.labels]
    yield from itertools.product(*values)


def write(board: Board, second: int) -> None:
    """Put a value on every metric: gauges in 0..1 or a time, counters and histograms a little more each second."""
    for metric in metrics.ALL:
        for labels in rows(metric):
            if metric.kind == "counter":
                board.add(metric, 1.0, *labels)
            elif metric.kind == "histogram":
                board.observe(metric, [0.3, 0.7], *labels)
            elif "timestamp" in metric.name:
                board.set(metric, time.time() - 100, *labels)
            else:
                board.set(metric, 1.0 if second % 20 else 0.5, *labels)


@pytest.fixture(scope="module")
def prometheus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a Prometheus that has scraped the board for a while, with the alerts loaded to fire at once."""
    board, stop = Board(), threading.Event()
    write(board, 0)
    server, _ = start_http_server(0, "127.0.0.1", registry(board))

    def grow() -> None:
        for second in itertools.count(1):
            if stop.wait(1):
                return
            write(board, second)

    thread = threading.Thread(target=grow, daemon=True)
    thread.start()
    rules = prometheus.rules(Links())
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule["for"] = "0s"
    for group in rules["groups"]:
        group["interval"] = "1s"
    targets = {"moe-watch": [(f"127.0.0.1:{server.server_port}", {})]}
    try:
        with monitoring.prometheus(tmp_path_factory.mktemp("prometheus"), targets, rules) as url:
            done = 'sum_over_time(up{job="moe-watch"}[1m]) > 12'  # those that came back
            monitoring.wait_until(lambda: bool(monitoring.ask(url, done, instant=True)), "a dozen scrapes")
            yield url
    finally:
        stop.set()
        thread.join()
        server.shutdown()


def asked() -> list[Asked]:
    return [
        query
        for content in assets.dashboards().values()
        for query in queries(content)
        if "vllm:" not in query.expr and "up{" not in query.expr
    ]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("query", asked(), ids=lambda q: f"{q.dashboard}/{q.panel}/{q.ref}")
def test_a_panel_shows_numbers(prometheus_url: str, query: Asked, choice: str) -> None:
    """With all models or chosen ones, the query returns series with numbers in them."""
    expr = fill(query.expr, CHOICES[choice], BUILT_IN)
    assert monitoring.wait_for_numbers(prometheus_url, expr, instant=query.instant)


@pytest.mark.parametrize("query", asked(), ids=lambda q: f"{q.dashboard}/{q.panel}/{q.ref}")
def test_a_legend_is_never_blank(prometheus_url: str, query: Asked) -> None:
    """Every label of the legend is on every series that comes back."""
    content = assets.dashboards()[query.dashboard]
    targets = [t for panel in content["panels"] if panel["title"] == query.panel for t in panel.get("targets", [])]
    legends = [target["legendFormat"] for target in targets if target["expr"] == query.expr]
    for legend in legends:
        wanted = {part.split("}}")[0] for part in legend.split("{{")[1:]}
        expr = fill(query.expr, CHOICES["all"], BUILT_IN)
        for series in monitoring.wait_for_numbers(prometheus_url, expr, instant=query.instant):
            assert wanted <= set(series["metric"]), legend


def test_the_variables_find_their_choices(prometheus_url: str) -> None:
    """Each variable's label values are those on the board."""
    for variable in assets.dashboards()["moe-watch-overview"]["templating"]["list"][1:]:
        metric, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rsplit(", ", 1)
        expr = f"group by ({label}) ({fill(metric, CHOICES['all'])})"
        found = monitoring.wait_for_numbers(prometheus_url, expr, instant=True)
        assert {series["metric"][label] for series in found} == set(VALUES[label])


def test_each_alert_evaluates_without_fault(prometheus_url: str) -> None:
    """Prometheus reports every rule of every group as healthy."""
    wanted = {alert.name: ("ok", "") for alert in ALERTS}

    def health() -> dict[str, tuple[str, str]]:
        answer = monitoring.httpx.get(f"{prometheus_url}/api/v1/rules", timeout=monitoring.PATIENCE_S).json()
        rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
        return {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules}

    monitoring.wait_until(lambda: "unknown" not in {state for state, _ in health().values()}, "every rule evaluated")
    assert health() == wanted
