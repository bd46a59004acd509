"""The board by OTLP: the same definitions and the same values as the scrape, sent to a collector.

The board already holds every value, so its families become OTLP data points directly; instruments of the SDK would hold
them a second time, and have no observable histogram. Names are such that a collector that writes to Prometheus gives
the names of the scrape back; what has a name in the GenAI semantic conventions goes by that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from moe_watch import __version__
from moe_watch.metrics import board as snapshot
from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board, Family, Series
from moe_watch.settings import OtlpSettings

_UNITS: Final = {"_seconds": "s", "_bytes": "By", "_ratio": "1", "_nats": "nat"}
_GEN_AI: Final = {  # https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
    metrics.TTFT: "gen_ai.server.time_to_first_token",
    metrics.TPOT: "gen_ai.server.time_per_output_token",
}
_GEN_AI_LABELS: Final = {"model": "gen_ai.response.model"}
_NS: Final = 1_000_000_000

_log = structlog.get_logger()


async def export_forever(board: Board, settings: OtlpSettings) -> None:
    """Send the board every ``interval_s`` until cancelled, and once more then; a collector may be away."""
    if settings.endpoint is None:
        return
    exporter = OTLPMetricExporter(f"{settings.endpoint.rstrip('/')}/v1/metrics")
    try:
        while True:
            await asyncio.sleep(settings.interval_s)
            await asyncio.to_thread(_send, exporter, board)
    finally:
        await asyncio.to_thread(_send, exporter, board)
        exporter.shutdown()


def _send(exporter: OTLPMetricExporter, board: Board) -> None:
    if exporter.export(metrics_data(board, time.time()), timeout_millis=5000) is not MetricExportResult.SUCCESS:
        _log.warning("the OTLP collector did not take the metrics")


def metrics_data(board: Board, now: float) -> MetricsData:
    """Return everything on the board as OTLP's data; ``now`` in seconds since the epoch."""
    scope = InstrumentationScope("moe_watch", __version__)
    found = [_metric(family, int(board.started_at * _NS), int(now * _NS)) for family in board.read()]
    resource = Resource.create({"service.name": "moe-watch", "service.version": __version__})
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, found, "")], "")])


def name_and_unit(metric: metrics.Metric) -> tuple[str, str]:
    """Return the OTLP name and unit of a metric.

    >>> name_and_unit(metrics.OOD_RATIO), name_and_unit(metrics.REQUESTS)
    (('moe_watch.ood', '1'), ('moe_watch.requests', ''))
    """
    base = metric.name.removesuffix("_total")
    unit = ""
    for suffix, named in _UNITS.items():
        if base.endswith(suffix):
            base, unit = base.removesuffix(suffix), named
    return _GEN_AI.get(metric, base.replace("moe_watch_", "moe_watch.", 1)), unit


def _metric(family: Family, start: int, now: int) -> Metric:
    metric = family.metric
    name, unit = name_and_unit(metric)
    renamed = _GEN_AI_LABELS if metric in _GEN_AI else {}
    labels = tuple(renamed.get(label, label) for label in metric.labels)
    data: Gauge | Sum | Histogram
    if metric.kind == "histogram":
        points = [_histogram(metric, series, labels, start, now) for series in family.series]
        data = Histogram(points, AggregationTemporality.CUMULATIVE)
    else:
        numbers = [_number(series, labels, start, now) for series in family.series]
        is_counter = metric.kind == "counter"
        data = Sum(numbers, AggregationTemporality.CUMULATIVE, is_monotonic=True) if is_counter else Gauge(numbers)
    return Metric(name, metric.help, unit, data)


def _number(series: Series, labels: tuple[str, ...], start: int, now: int) -> NumberDataPoint:
    if isinstance(series.value, snapshot.Histogram):
        raise TypeError(series.labels)
    attributes = dict(zip(labels, series.labels, strict=True))
    return NumberDataPoint(attributes, start, now, series.value, _exemplars(series))


def _histogram(
    metric: metrics.Metric, series: Series, labels: tuple[str, ...], start: int, now: int
) -> HistogramDataPoint:
    if not isinstance(series.value, snapshot.Histogram):
        raise TypeError(metric.name)
    counts = series.value.counts.tolist()
    return HistogramDataPoint(
        attributes=dict(zip(labels, series.labels, strict=True)),
        start_time_unix_nano=start,
        time_unix_nano=now,
        count=sum(counts),
        sum=series.value.total,
        bucket_counts=counts,
        explicit_bounds=metric.buckets,
        min=None,  # type: ignore[arg-type]  # optional in OTLP, and not kept
        max=None,  # type: ignore[arg-type]
        exemplars=_exemplars(series),
    )


def _exemplars(series: Series) -> list[Exemplar]:
    found = series.exemplar
    if found is None:
        return []
    trace = int(found.trace_id, 16) if found.trace_id else None
    return [Exemplar({"request_id": found.request_id}, found.value, int(found.at * _NS), trace_id=trace)]
