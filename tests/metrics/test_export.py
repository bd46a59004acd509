"""Metrics: named by convention, bounded, and the same by scrape and by OTLP."""

from __future__ import annotations

import asyncio
import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.metrics import otlp, prometheus
from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board, Exemplar
from moe_watch.settings import OtlpSettings, Settings
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.fingerprints import batch_of
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.store.records import served_models
from moe_watch.store.records.baselines import Active
from tests.support.frames import Tap


def _board() -> Board:
    board = Board(started_at=1.0)
    board.set(metrics.OOD_RATIO, 0.25, "m", "r")
    board.add(metrics.OOD_REQUESTS, 3, "m", "r", exemplar=Exemplar("chatcmpl-7", 1.0, 2.0))
    board.observe(metrics.TTFT, [0.05, 0.3, 100.0, np.nan], "m", "r", "4k", exemplar=Exemplar("chatcmpl-8", 0.3, 2.0))
    return board


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: metrics.Metric) -> None:
    """Counters end in _total and nothing else does; help is a sentence; every label is documented."""
    assert re.fullmatch(r"moe_watch_[a-z][a-z0-9_]*[a-z0-9]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert metric.help.endswith(".")
    assert set(metric.labels) <= set(metrics.LABELS) | {
        "tap_version",
        "vllm_version",
        "runner",
        "moe_backend",
        "quantization",
    }
    assert (metric.kind == "histogram") == bool(metric.buckets) == (list(metric.buckets) != [])
    assert list(metric.buckets) == sorted(set(metric.buckets))
    if metric.kind == "histogram":
        assert metric.name.endswith("_seconds")


def test_names_are_unique() -> None:
    """No two metrics share a name."""
    names = [metric.name for metric in metrics.ALL]
    assert len(names) == len(set(names))


def test_a_metric_is_used_as_what_it_is() -> None:
    """A gauge is not counted up, and labels are not forgotten."""
    board = Board()
    for wrong in (
        lambda: board.add(metrics.OOD_RATIO, 1, "m", "r"),
        lambda: board.set(metrics.OOD_REQUESTS, 1, "m", "r"),
        lambda: board.set(metrics.OOD_RATIO, 1, "m"),
        lambda: board.observe(metrics.OOD_RATIO, [1], "m", "r"),
        lambda: board.replace(metrics.DEAD_EXPERTS, ("m",), {("r",): 1.0}),
    ):
        with pytest.raises(TypeError, match="is a"):
            wrong()


def test_the_text_is_what_prometheus_reads() -> None:
    """Values, buckets and sums come through; nan is in no bucket."""
    body, content_type = prometheus.render(prometheus.registry(_board()), "")
    assert content_type.startswith("text/plain")
    found = {sample.name: {} for family in parse_text(body.decode()) for sample in family.samples}
    for family in parse_text(body.decode()):
        for sample in family.samples:
            found[sample.name][sample.labels.get("le", "")] = sample.value
    assert found["moe_watch_ood_ratio"] == {"": 0.25}
    assert found["moe_watch_ood_requests_total"] == {"": 3.0}
    ttft = found["moe_watch_time_to_first_token_seconds_bucket"]
    assert (ttft["0.1"], ttft["0.2"], ttft["0.4"], ttft["60.0"], ttft["+Inf"]) == (1, 1, 2, 2, 3)
    assert found["moe_watch_time_to_first_token_seconds_sum"] == {"": pytest.approx(100.35)}


def test_openmetrics_has_exemplars() -> None:
    """The request id is there where OpenMetrics was negotiated, in the right bucket."""
    body, content_type = prometheus.render(prometheus.registry(_board()), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    exemplars = {
        (sample.name, sample.labels.get("le", "")): sample.exemplar.labels["request_id"]
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
        if sample.exemplar
    }
    assert exemplars == {
        ("moe_watch_ood_requests_total", ""): "chatcmpl-7",
        ("moe_watch_time_to_first_token_seconds_bucket", "0.4"): "chatcmpl-8",
    }


def test_a_very_long_request_id_is_cut() -> None:
    """OpenMetrics allows 128 characters in an exemplar."""
    board = Board()
    board.add(metrics.OOD_REQUESTS, 1, "m", "r", exemplar=Exemplar("x" * 255, 1.0, 2.0))
    body, _ = prometheus.render(prometheus.registry(board), "application/openmetrics-text")
    assert list(parse_openmetrics(body.decode()))


def test_top_movers_replace_each_other() -> None:
    """Series whose labels change do not pile up, and other replicas' stay."""
    board = Board()
    board.replace(metrics.TOP_MOVER_SHARE, ("m", "a"), {("1", "2"): 0.1})
    board.replace(metrics.TOP_MOVER_SHARE, ("m", "b"), {("1", "2"): 0.2})
    board.replace(metrics.TOP_MOVER_SHARE, ("m", "a"), {("3", "4"): 0.3})
    (family,) = board.read()
    assert {series.labels for series in family.series} == {("m", "b", "1", "2"), ("m", "a", "3", "4")}
    board.drop("m", "a")
    (family,) = board.read()
    assert {series.labels for series in family.series} == {("m", "b", "1", "2")}


def _busy(layers: int, experts: int, top_k: int, requests: int = 400) -> Board:
    """Return the board after real requests of one replica, judged against a baseline."""
    board, tap, join = Board(), Tap(layers=layers, experts=experts, top_k=top_k), Join(5.0)
    monitors, model = ReplicaMonitors(Settings(), board), tap.announce()
    monitors.announce(model, 0.0)
    monitors.hear(tap.health(), 0.0)
    joined = join.add([frame for _ in range(requests) for frame in tap.whole()], 0.0)
    identity = served_models.identity(model)
    builder = BaselineBuilder(minimum=300)
    builder.add(batch_of(model, joined)[0])
    monitors.use({identity: Normal(Active(1, identity, 1, 0.0, requests), builder.build())}, 0.0)
    monitors.process(joined, 1.0)
    monitors.process(join.add([f for i in range(40) for f in tap.whole(f"odd-{i}", unseen=True)], 0.0), 2.0)
    monitors.tick(10.0)
    return board


def test_series_per_replica_are_bounded() -> None:
    """At 30 x 128, with everything that one replica can show, there are at most 1,500 of them."""
    board = _busy(30, 128, 8)
    for metric in metrics.ALL:  # what is not the pipeline's own: canaries, quality, per-layer bounds
        for labels in _possible(metric):
            if metric.kind == "gauge":
                board.set(metric, 0, *labels)
            elif metric.kind == "counter":
                board.add(metric, 0, *labels)
            else:
                board.observe(metric, [], *labels)
    body, _ = prometheus.render(prometheus.registry(board), "")
    series = sum(len(family.samples) for family in parse_text(body.decode()))
    assert 500 < series <= 1500


def _possible(metric: metrics.Metric) -> list[tuple[str, ...]]:
    """Return the label values that a replica can have of ``metric``, top movers and infos left out."""
    values = {
        "layer": tuple(str(layer) for layer in range(30)),
        "verdict": metrics.CANARY_VERDICTS if "canary" in metric.name else metrics.VERDICTS,
        "kind": metrics.EVENT_KINDS,
        "load": ("1", "4", "16", "mixed"),
        "channel": metrics.CHANNELS,
        "outcome": metrics.OUTCOMES,
        "reason": metrics.REFUSAL_REASONS,
        "type": ("model", "routing", "latency", "request", "event", "health"),
        "context": metrics.CONTEXTS,
        "decile": tuple(str(decile) for decile in range(1, 11)),
        "defect": tuple(f"defect{number}" for number in range(8)),
        "part": metrics.PARTS,
    }
    if "expert" in metric.labels or metric.name.endswith("_info"):
        return []
    found: list[tuple[str, ...]] = [()]
    for label in metric.labels:
        options = {"model": ("tiny",), "replica": ("r0",)}.get(label) or values[label]
        found = [(*row, option) for row in found for option in options]
    return found


def test_flags_are_there_before_anything_happened() -> None:
    """An alert cannot fire on a series that is absent: yes-or-no gauges and counters begin at 0."""
    board, tap = Board(), Tap()
    ReplicaMonitors(Settings(), board).announce(tap.announce(), 0.0)
    shown = {(f.metric.name, *s.labels[2:]): s.value for f in board.read() for s in f.series}
    assert shown["moe_watch_tap_up",] == 0
    assert shown["moe_watch_drift_active", "traffic"] == shown["moe_watch_drift_active", "routing"] == 0
    assert shown["moe_watch_ood_requests_total",] == 0
    assert shown["moe_watch_frames_dropped_total", "queue_full"] == 0


@pytest.fixture
def collector() -> Iterator[tuple[str, list[ExportMetricsServiceRequest]]]:
    """Run a real OTLP/HTTP receiver; return its address and what it was sent."""
    got: list[ExportMetricsServiceRequest] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/metrics"
            got.append(ExportMetricsServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()


def test_otlp_carries_the_same_values(collector: tuple[str, list[ExportMetricsServiceRequest]]) -> None:
    """A real receiver gets every family, with buckets and exemplars, and names that turn back into the scrape's."""
    url, got = collector

    async def once() -> None:
        task = asyncio.create_task(otlp.export_forever(_board(), OtlpSettings(endpoint=url, interval_s=0.01)))
        while not got:  # noqa: ASYNC110 - the receiver is a thread
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(once())
    sent = {metric.name: metric for metric in got[0].resource_metrics[0].scope_metrics[0].metrics}
    assert sent["moe_watch.ood"].gauge.data_points[0].as_double == 0.25
    counter = sent["moe_watch.ood_requests"].sum
    assert counter.is_monotonic
    assert counter.data_points[0].as_double == 3
    assert counter.data_points[0].exemplars[0].filtered_attributes[0].value.string_value == "chatcmpl-7"
    point = sent["gen_ai.server.time_to_first_token"].histogram.data_points[0]
    assert (point.count, point.sum) == (3, pytest.approx(100.35))
    assert list(point.explicit_bounds) == list(metrics.TTFT_BUCKETS)
    assert sum(point.bucket_counts) == 3
    assert {pair.key for pair in point.attributes} == {"gen_ai.response.model", "replica", "context"}


def test_both_ways_know_the_same_families() -> None:
    """One definition: what is scraped is exported, family by family."""
    board = _board()
    (resource,) = otlp.metrics_data(board, 3.0).resource_metrics
    assert len(resource.scope_metrics[0].metrics) == len(board.read()) == 3


@pytest.mark.real
def test_promtool_finds_nothing_to_complain_about() -> None:
    """The real linter accepts the names, the help and the text of a busy sidecar."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: make system")
    body, _ = prometheus.render(prometheus.registry(_busy(3, 8, 2)), "")
    found = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)
    assert (found.returncode, found.stderr.decode()) == (0, "")
