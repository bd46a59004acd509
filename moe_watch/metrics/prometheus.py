"""The board as Prometheus text or OpenMetrics, on a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as PrometheusExemplar

from moe_watch.metrics.board import Board, Exemplar, Family, Histogram, Series

_EXEMPLAR: Final = 128


class BoardCollector(Collector):
    """Yields what is on the board at the moment of the scrape."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterator[Metric]:
        """Yield one Prometheus family per metric that has series."""
        for family in self._board.read():
            yield _TO_PROMETHEUS[family.metric.kind](family)


def registry(board: Board) -> CollectorRegistry:
    """Return a registry that holds the board and nothing else."""
    made = CollectorRegistry(auto_describe=False)
    made.register(BoardCollector(board))
    return made


def render(source: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the body and its content type in the best format that ``accept`` (the HTTP header) allows."""
    encoder, content_type = choose_encoder(accept)
    return encoder(source), content_type


def _gauge(family: Family) -> Metric:
    made = GaugeMetricFamily(family.metric.name, family.metric.help, labels=family.metric.labels)
    for series in family.series:
        made.add_metric(series.labels, _number(series))
    return made


def _counter(family: Family) -> Metric:
    made = CounterMetricFamily(family.metric.name, family.metric.help, labels=family.metric.labels)
    for series in family.series:
        exemplar = _exemplar(series.exemplar) if series.exemplar else None
        made.add_metric(series.labels, _number(series), exemplar=exemplar)
    return made


def _histogram(family: Family) -> Metric:
    made = HistogramMetricFamily(family.metric.name, family.metric.help, labels=family.metric.labels)
    bounds = [*(str(float(bound)) for bound in family.metric.buckets), "+Inf"]
    for series in family.series:
        if not isinstance(series.value, Histogram):
            raise TypeError(family.metric.name)
        at = _bucket(family, series.exemplar)
        cumulative = series.value.counts.cumsum().tolist()
        buckets: list[tuple[str, float] | tuple[str, float, PrometheusExemplar]] = [
            (bound, count, _exemplar(series.exemplar)) if series.exemplar and index == at else (bound, count)
            for index, (bound, count) in enumerate(zip(bounds, cumulative, strict=True))
        ]
        made.add_metric(series.labels, buckets, series.value.total)
    return made


def _bucket(family: Family, exemplar: Exemplar | None) -> int:
    if exemplar is None:
        return -1
    return sum(exemplar.value > bound for bound in family.metric.buckets)


def _exemplar(exemplar: Exemplar) -> PrometheusExemplar:
    """Return the exemplar in the 128 characters that OpenMetrics allows for names and values of labels."""
    trace = {"trace_id": exemplar.trace_id} if exemplar.trace_id else {}
    room = _EXEMPLAR - len("request_id") - sum(len(name) + len(value) for name, value in trace.items())
    return PrometheusExemplar({"request_id": exemplar.request_id[:room], **trace}, exemplar.value, exemplar.at)


def _number(series: Series) -> float:
    if isinstance(series.value, Histogram):
        raise TypeError(series.labels)
    return series.value


_TO_PROMETHEUS = {"gauge": _gauge, "counter": _counter, "histogram": _histogram}
