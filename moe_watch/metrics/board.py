"""The current value of every series, held once; Prometheus and OTLP both read it.

Whoever knows a value puts it here under a metric of ``export.metrics``: the sidecar's judge, the shadow, the canaries.
Writers and readers may be different threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_watch.metrics import series as metrics
from moe_watch.metrics.series import Metric
from moe_watch.metrics.spans import Spans

LabelValues = tuple[str, ...]


@dataclass(frozen=True)
class Exemplar:
    """One request that stands for a counted event."""

    request_id: str
    value: float
    at: float  # seconds since the epoch
    trace_id: str = ""  # 32 hexadecimal digits, where the request came with a trace


@dataclass(frozen=True)
class Histogram:
    """Counts per bucket ``[buckets + 1]`` (not cumulative, the last is +Inf) and the sum of what was observed."""

    counts: NDArray[np.int64]
    total: float


@dataclass(frozen=True)
class Series:
    """One series of a metric at one moment."""

    labels: LabelValues
    value: float | Histogram
    exemplar: Exemplar | None = None


@dataclass(frozen=True)
class Family:
    """A metric with all of its series at one moment."""

    metric: Metric
    series: list[Series]


@dataclass
class Board:
    """Where values are put and read; see ``export.metrics`` for the names."""

    started_at: float = 0.0  # seconds since the epoch: when counters were 0
    spans: Spans = field(default_factory=Spans)  # of flagged requests, which leave one by one
    _values: dict[Metric, dict[LabelValues, float | Histogram]] = field(default_factory=dict)
    _exemplars: dict[tuple[Metric, LabelValues], Exemplar] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Set a gauge."""
        _check(metric, "gauge", labels)
        with self._lock:
            self._values.setdefault(metric, {})[labels] = float(value)

    def set_state(self, metric: Metric, current: str, states: Iterable[str], *labels: str) -> None:
        """Set a state set: 1 for ``current`` and 0 for the other ``states``, which are the last label."""
        for state in states:
            self.set(metric, float(state == current), *labels, state)

    def add(self, metric: Metric, amount: float, *labels: str, exemplar: Exemplar | None = None) -> None:
        """Raise a counter; ``add(metric, 0)`` makes the series exist."""
        _check(metric, "counter", labels)
        with self._lock:
            family = self._values.setdefault(metric, {})
            before = family.get(labels, 0.0)
            family[labels] = float(amount) + (before if isinstance(before, float) else 0.0)
            if exemplar is not None:
                self._exemplars[metric, labels] = exemplar

    def observe(self, metric: Metric, values: ArrayLike, *labels: str, exemplar: Exemplar | None = None) -> None:
        """Put ``values`` (any number of them) into a histogram; nan is left out."""
        _check(metric, "histogram", labels)
        seen = np.asarray(values, dtype=np.float64).ravel()
        seen = seen[~np.isnan(seen)]
        counts = np.bincount(np.searchsorted(metric.buckets, seen), minlength=len(metric.buckets) + 1)
        with self._lock:
            family = self._values.setdefault(metric, {})
            before = family.get(labels)
            old = before if isinstance(before, Histogram) else Histogram(np.zeros_like(counts), 0.0)
            family[labels] = Histogram(old.counts + counts, old.total + float(seen.sum()))
            if exemplar is not None:
                self._exemplars[metric, labels] = exemplar

    def replace(self, metric: Metric, scope: LabelValues, rows: Mapping[LabelValues, float]) -> None:
        """Let ``rows`` (the remaining labels -> value) be all series of a gauge whose first labels are ``scope``."""
        for rest in rows:
            _check(metric, "gauge", scope + rest)
        with self._lock:
            family = self._values.setdefault(metric, {})
            for labels in [known for known in family if known[: len(scope)] == scope]:
                del family[labels]
            family.update({scope + rest: float(value) for rest, value in rows.items()})

    def drop(self, model: str, replica: str) -> None:
        """Forget every series of one model at one replica, when another model is served there."""
        with self._lock:
            for metric, family in self._values.items():
                if metric.labels[:2] != ("model", "replica"):
                    continue
                for labels in [known for known in family if known[:2] == (model, replica)]:
                    del family[labels]
                    self._exemplars.pop((metric, labels), None)

    def read(self) -> list[Family]:
        """Return all families with at least one series, in the order of ``metrics.ALL``."""
        with self._lock:
            return [
                Family(
                    metric,
                    [Series(labels, value, self._exemplars.get((metric, labels))) for labels, value in found.items()],
                )
                for metric in metrics.ALL
                if (found := self._values.get(metric))
            ]


def _check(metric: Metric, kind: metrics.Kind, labels: LabelValues) -> None:
    if metric.kind != kind or len(labels) != len(metric.labels):
        raise TypeError(f"{metric.name} is a {metric.kind} with labels {metric.labels}, not a {kind} with {labels}")
