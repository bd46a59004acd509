"""The weekly review as data: one frozen tree that the page, Markdown and JSON all read."""

from __future__ import annotations

from dataclasses import dataclass

from moe_watch.report.data.sections import (
    Advantage,
    Canaries,
    Change,
    Coverage,
    Latency,
    Load,
    Ood,
    Quality,
    Slowdown,
    Suspects,
    Timeline,
)
from moe_watch.report.data.types import Interval, Missing, Period


@dataclass(frozen=True)
class Served:
    """The model in the configuration that this review is about, as the tap announced it."""

    name: str
    identity: str
    layers: int
    experts: int
    top_k: int
    layer_ids: tuple[int, ...]  # [layers] index of each in the whole model
    first_seen: float
    facts: dict[str, str]  # version, backend, quantisation, ... where known


@dataclass(frozen=True)
class Totals:
    """What the previous period is compared in; None where nothing was measured."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    coverage: float | None
    ood: Interval | None
    entropy: float | None  # mean over layers, nats
    ttft: float | None  # median, seconds
    tpot: float | None  # median, seconds
    corrupted: int
    preemptions: int
    alarms: int


@dataclass(frozen=True)
class BaselineFacts:
    """The baseline in force."""

    version: int
    promoted_at: float | None
    created_at: float
    requests: int
    note: str


@dataclass(frozen=True)
class Promises:
    """What the operator promised and tolerates, from the settings."""

    run_length: float  # requests between false alarms, at least
    coverage_floor: float  # share of requests with routing below which the tap is blind
    gap_tolerance: float  # nats per token


@dataclass(frozen=True)
class Review:
    """Everything that is known about one model in one period."""

    served: Served
    replicas: tuple[str, ...]
    period: Period
    previous_period: Period
    totals: Totals
    previous: Totals | None
    baseline: BaselineFacts | Missing
    timeline: Timeline
    ood: Ood | Missing
    change: Change | Missing
    quality: Quality | Missing
    advantage: Advantage | Missing
    latency: Latency | Missing
    slowdowns: tuple[Slowdown, ...]  # latencies that both models have in this period and the one before
    suspects: Suspects | Missing
    load: Load | Missing
    canaries: Canaries | Missing
    coverage: Coverage
    promises: Promises


@dataclass(frozen=True)
class Report:
    """One review for each model that was seen, made at ``made_at``."""

    made_at: float
    version: str
    period: Period
    reviews: tuple[Review, ...]
