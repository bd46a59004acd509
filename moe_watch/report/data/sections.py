"""The sections of a review as data; each is a ``Missing`` instead where there is nothing to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_watch.detect.quality.difference_in_differences import Cause
from moe_watch.report.data.types import Interval, Period


@dataclass(frozen=True)
class Mark:
    """Something at one time that may explain a change."""

    at: float
    kind: str  # engine_start, eplb_rebalance, baseline_promoted, model_changed, tap_off, ...
    text: str
    replica: str


@dataclass(frozen=True)
class Alarm:
    """One alarm that was open in the period; ``ending`` is one of ``endings``, None while it is open or not known."""

    id: int
    kind: str
    replica: str
    began_at: float
    flagged_at: float
    ended_at: float | None
    summary: str
    channel: str
    layer: int | None
    ending: str | None = None


@dataclass(frozen=True)
class Bucket:
    """One step of the timeline; ``rate`` is None where no request had a p-value."""

    start: float
    requests: int
    routed: int
    rate: Interval | None


@dataclass(frozen=True)
class Timeline:
    """The period in steps of ``step`` seconds; steps without any window are left out."""

    step: float
    buckets: tuple[Bucket, ...]
    alarms: tuple[Alarm, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Slice:
    """Out-of-distribution share of one part of the traffic."""

    name: str
    requests: int
    rate: Interval


@dataclass(frozen=True)
class Ood:
    """How much traffic was unlike the baseline; ``expected`` of normal traffic is flagged by construction."""

    rate: Interval
    expected: float
    histogram: tuple[int, ...]  # requests by p-value in equal bins; flat on the baseline's own traffic
    domains: tuple[Slice, ...]
    modalities: tuple[Slice, ...]  # text, image; empty where all is of one
    over_steps: tuple[float, float] | None  # 5 % and 95 % quantile of the rate over the timeline's steps


@dataclass(frozen=True)
class Mover:
    """One expert whose share of its layer changed; ``effect`` is Cohen's d over requests."""

    layer: int  # index in the whole model
    expert: int
    before: float
    after: float
    effect: float


@dataclass(frozen=True)
class Change:
    """Routing now against a reference, over requests: ``effect[l][e]`` is Cohen's d of the square-root share."""

    reference: str  # "baseline 3", "the previous 7 days"
    period: Period  # that of ``alarm``, else the whole
    alarm: int | None
    requests: int
    reference_requests: int
    effect: tuple[tuple[float, ...], ...]
    error: float  # standard error of an effect: anything below twice that is noise
    layers: tuple[int, ...]  # indices in the whole model of the layers that moved most, the first most of all
    named: bool  # whether the requests are enough to name experts with a bound on false discoveries
    movers: tuple[Mover, ...]  # the largest effects of at least 0.2 among the experts that are named
    moved: int  # how many such experts there are


@dataclass(frozen=True)
class Group:
    """The quality of one part of the traffic."""

    name: str
    gap: Interval | None  # None: none of it could be replayed, such as requests with images
    garbled: Interval | None  # share of outputs


@dataclass(frozen=True)
class Defect:
    """Share of sampled outputs with one kind of defect, of the MoE and of the dense model on the same prompts."""

    name: str
    moe: Interval
    dense: Interval | None


@dataclass(frozen=True)
class Shift:
    """Change of the gap since the previous period, the part that the dense model did not share; above 0 is worse."""

    effect: Interval
    cause: Cause
    alike: Interval | None  # the same among requests as unusual as before, at the mix of before; None: too few


@dataclass(frozen=True)
class Slowdown:
    """Relative change of a latency since the previous period, where both models had as many requests under way."""

    name: str
    moe: Interval
    dense: Interval
    effect: Interval  # the part of the MoE's change that the dense model did not share
    cause: Cause


@dataclass(frozen=True)
class Quality:
    """The MoE's output against the dense model's, in nats per token under the dense model; above 0 is worse."""

    dense_model: str  # empty: none answered
    sampled: int
    scored: int  # of them: how likely the dense model finds them is known
    gap: Interval | None  # None: fewer than two were scored
    shift: Shift | None
    deciles: tuple[Interval, ...]  # the gap by tenth of the traffic, the most ordinary first; empty without scores
    rise: Interval | None  # from the most ordinary to the most unusual request
    groups: dict[str, tuple[Group, ...]]  # by domain, modality, context, version
    agreement: Interval | None
    top1: Interval | None  # share of the MoE's tokens that the dense model ranks first
    judge: Interval | None  # -1..1: above 0 a judge prefers the MoE's outputs
    judge_agreement: Interval | None  # share of the judge's preferences that the gap shares; 0.5 is chance
    garbled: Interval | None  # share of outputs that loop, break their encoding, ...
    defects: tuple[Defect, ...]


@dataclass(frozen=True)
class Speed:
    """MoE over dense tokens per second at one concurrency; above 1 the MoE pays."""

    concurrency: str
    ratio: Interval
    moe: float | None  # tokens/s
    dense: float | None


@dataclass(frozen=True)
class Advantage:
    """Does the MoE pay; ``source`` is "bench" (side by side, equal concurrency) or "live" (the shadow's replays)."""

    source: Literal["bench", "live"]
    at: float
    dense_model: str
    steps: tuple[Speed, ...]


@dataclass(frozen=True)
class Context:
    """Time to first token of one bucket of prompt length; quantiles are read off a histogram."""

    name: str
    requests: int
    median: float
    p95: float
    budget: float | None
    over: Interval | None  # share over the budget


@dataclass(frozen=True)
class Latency:
    """Time to first token by prompt length, and time per output token."""

    contexts: tuple[Context, ...]
    tpot: float | None  # median, seconds
    long_share: float  # of requests with prompts above 32K tokens


@dataclass(frozen=True)
class Text:
    """Sampled text of one request: not yet neutralised."""

    prompt: str
    output: str


@dataclass(frozen=True)
class Suspect:
    """One of the most unusual requests; ``reasons`` name layers and experts where the fingerprint was kept."""

    request_id: str
    choice: int
    replica: str
    finished_at: float
    p: float
    score: float
    prompt_tokens: int
    output_tokens: int
    domain: str
    finish_reason: str
    reasons: tuple[str, ...]
    text: Text | None


@dataclass(frozen=True)
class Suspects:
    """The worst requests, the most unusual first; ``texts`` says why there is text or not."""

    requests: tuple[Suspect, ...]
    texts: str


@dataclass(frozen=True)
class LayerLoad:
    """Load of the experts of one layer, over all tokens: 1 is even."""

    layer: int  # index in the whole model
    busiest: int
    max_to_mean: float
    baseline_max_to_mean: float | None
    entropy: float  # over its maximum
    unused: tuple[int, ...]  # experts without a single token in the period
    unused_before: tuple[int, ...] | None  # the same in the baseline
    gone: tuple[int, ...]  # those of ``unused`` that the baseline's traffic uses too often for that to be an accident


@dataclass(frozen=True)
class Load:
    """Load balance by layer."""

    requests: int
    layers: tuple[LayerLoad, ...]


@dataclass(frozen=True)
class Replay:
    """One check of the canaries."""

    at: float
    load: str
    verdict: str
    first_layer: int | None
    summary: str


@dataclass(frozen=True)
class Canaries:
    """The same prompts again and again: what tells traffic from the model."""

    replays: tuple[Replay, ...]  # the latest first
    by_verdict: dict[str, int]


@dataclass(frozen=True)
class Coverage:
    """How much of what happened the report rests on."""

    requests: int
    routed: int
    joined: int | None
    scored: int
    aborted: int
    received: int | None  # frames
    dropped: dict[str, int]  # frames, by reason
    silent: tuple[Period, ...]  # stretches without any window
    rows_since: float | None  # oldest per-request row of the model
    samples: int
    shadowed: int
    confidence: int  # requests with router entropy
