"""One sentence over each section: what it shows, so that the plot is only the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from moe_watch.detect.canary.comparison import FAULTS
from moe_watch.detect.drift.naming_limits import FEWEST
from moe_watch.domain import amounts
from moe_watch.provision.thresholds import TTFT_MIN_REQUESTS
from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Advantage, Canaries, Change, Coverage, Latency, Load, Ood, Quality, Suspects
from moe_watch.report.data.types import Missing
from moe_watch.report.say import phrases

_UNEVEN: Final = 2.0  # times the baseline's load of the busiest expert


def leads(review: Review) -> dict[str, str]:
    """Return the sentence over each section that has data."""
    found = {
        "timeline": _timeline(review),
        "change": _change(review.change),
        "ood": _ood(review.ood),
        "quality": _quality(review.quality),
        "advantage": _advantage(review.advantage),
        "latency": _latency(review.latency),
        "suspects": _suspects(review.suspects),
        "load": _load(review.load),
        "canaries": _canaries(review.canaries),
        "coverage": _coverage(review.coverage),
    }
    return {name: sentence for name, sentence in found.items() if sentence}


def unknowns(review: Review) -> tuple[str, ...]:
    """Say what the report does not know."""
    return tuple(_unknowns(review))


def _timeline(review: Review) -> str:
    known = [(bucket, bucket.rate) for bucket in review.timeline.buckets if bucket.rate is not None]
    if not known:
        return "Requests over time; none of them was scored."
    bucket, rate = max(known, key=lambda pair: pair[1].low or 0)
    peak = (
        f"{amounts.share(rate.value)} of {amounts.plural(rate.requests, 'request')} on {amounts.moment(bucket.start)}"
    )
    alarms = amounts.plural(len(review.timeline.alarms), "alarm") if review.timeline.alarms else "no alarm"
    return f"The share of unusual requests peaked at {peak}; {alarms} in the period."


def _change(change: Change | Missing) -> str:
    if isinstance(change, Missing):
        return ""
    total = len(change.effect) * len(change.effect[0])
    when = f"during alarm {change.alarm}" if change.alarm is not None else "over the period"
    if not change.named:
        most = amounts.joined([str(layer) for layer in change.layers[:3]])
        few = f"{amounts.plural(change.requests, 'request')} came {when}: too few to name experts ({FEWEST} are needed)"
        return f"{few}; the most moved layers are {most}."
    if not change.moved:
        return f"None of {total:,} experts moved by as much as a small effect {when}, against {change.reference}."
    layers = Counter(mover.layer for mover in change.movers).most_common(3)
    named = amounts.joined([str(layer) for layer, _ in sorted(layers)])
    where = f"layer{'s' if len(layers) > 1 else ''} {named}"
    moved = f"{change.moved:,} of {total:,} experts moved by a small effect or more"
    return f"{moved} {when}, against {change.reference}; the most in {where}."


def _ood(ood: Ood | Missing) -> str:
    if isinstance(ood, Missing):
        return ""
    times = ood.rate.value / ood.expected
    known = f"{amounts.share(ood.rate.value)} of the requests were unlike the baseline"
    if ood.rate.low is not None and ood.rate.low > ood.expected:
        return f"{known}, {amounts.significant(times)} times what normal traffic has."
    return f"{known}; {amounts.share(ood.expected)} of normal traffic is, by construction."


def _quality(quality: Quality | Missing) -> str:
    if isinstance(quality, Missing):
        return ""
    known = [decile for decile in quality.deciles if decile.requests]
    if quality.rise is not None and (quality.rise.low or 0) > 0 and len(known) > 1:
        return (
            "The more unusual a request's routing, the worse the MoE answers it: the gap grows by "
            f"{phrases.estimate(quality.rise)} nats per token from the most ordinary to the most unusual request."
        )
    if quality.gap is not None:
        return f"The gap to {quality.dense_model} is {phrases.estimate(quality.gap)} nats per token."
    return f"Sampled outputs were looked at for defects; {phrases.without_gap(quality)}."


def _advantage(advantage: Advantage | Missing) -> str:
    if isinstance(advantage, Missing):
        return ""
    last = advantage.steps[-1]
    here = f"at {last.concurrency} at once it makes {amounts.significant(last.ratio.value)} times"
    ratio = f"{here} the dense model's tokens per second"
    surely = [(step.ratio.low or 0) > 1 for step in advantage.steps]
    if surely[-1]:
        first = len(surely) - next((n for n, sure in enumerate(reversed(surely)) if not sure), len(surely))
        return f"The MoE pays from a concurrency of {advantage.steps[first].concurrency} on; {ratio}."
    if any(surely):
        where = amounts.joined([step.concurrency for step, sure in zip(advantage.steps, surely, strict=True) if sure])
        return f"The MoE pays at a concurrency of {where}, not of {last.concurrency}: {ratio}."
    if last.ratio.value > 1:
        return f"That the MoE is faster than the dense model is not certain: {ratio}."
    return f"The MoE is not faster than the dense model: {ratio}."


def _latency(latency: Latency | Missing) -> str:
    if isinstance(latency, Missing):
        return ""
    judged = [c for c in latency.contexts if c.over is not None and c.requests >= TTFT_MIN_REQUESTS]
    late = [c.name for c in judged if c.budget is not None and c.p95 > c.budget]
    if not judged:
        return "Too few requests of any one length to hold against its budget."
    if not late:
        return "Nineteen of twenty requests got their first token within the budget of their length."
    lengths = amounts.joined(late)
    return f"One request in twenty, or more, waits longer than its budget for the first token at {lengths} tokens."


def _suspects(suspects: Suspects | Missing) -> str:
    if isinstance(suspects, Missing):
        return ""
    tags = Counter(suspect.domain for suspect in suspects.requests if suspect.domain).most_common(1)
    n = len(suspects.requests)
    known = "The most unusual request" if n == 1 else f"The {n} most unusual requests"
    if tags and tags[0][1] > 1:
        many = "all" if tags[0][1] == n else str(tags[0][1])
        return f"{known}; {many} of them are tagged “{tags[0][0]}”."
    return f"{known}."


def _load(load: Load | Missing) -> str:
    if isinstance(load, Missing):
        return ""
    first = next((layer for layer in load.layers if layer.gone), None)
    if first is not None:
        return f"Expert {first.gone[0]} of layer {first.layer} got no token; it did in the baseline."
    top = max(load.layers, key=lambda layer: layer.max_to_mean)
    busiest = (
        f"expert {top.busiest} of layer {top.layer} does {amounts.significant(top.max_to_mean)} times the mean work"
    )
    if top.baseline_max_to_mean is None:
        return f"The busiest, {busiest}."
    was = f"the busiest of that layer did {amounts.significant(top.baseline_max_to_mean)} times in the baseline"
    uneven = ", much less" if top.max_to_mean > _UNEVEN * top.baseline_max_to_mean else ""
    return f"The busiest, {busiest}; {was}{uneven}."


def _canaries(canaries: Canaries | Missing) -> str:
    if isinstance(canaries, Missing):
        return ""
    bad = sum(canaries.by_verdict.get(verdict, 0) for verdict in FAULTS)
    blind = canaries.by_verdict.get("blind", 0)
    n = len(canaries.replays) - blind
    if bad:
        return f"{amounts.plural(bad, 'replay')} of {n} found the same prompts routed or answered differently."
    if not n:
        return "No replay of the canaries could be judged."
    rest = f"; {amounts.plural(blind, 'more replay')} could not be judged" if blind else ""
    return f"The same prompts were replayed {'once' if n == 1 else f'{n} times'} and routed as before each time{rest}."


def _coverage(coverage: Coverage) -> str:
    if not coverage.requests:
        return "There is no data."
    return f"This report rests on the routing of {amounts.share(coverage.routed / coverage.requests)} of the requests."


def _unknowns(review: Review) -> Iterator[str]:
    coverage = review.coverage
    unrouted = coverage.requests - coverage.routed
    if unrouted:
        yield f"How {amounts.plural(unrouted, 'request')} were routed: no routing came for them."
    too_short = coverage.routed - coverage.scored
    if too_short and coverage.scored:
        routed = amounts.plural(too_short, "routed request")
        yield f"Whether {routed} were unusual: too short to score, or before the baseline."
    for gap in coverage.silent[:3]:
        yield (
            f"What happened from {amounts.moment(gap.since)} to {amounts.moment(gap.until)}: no request was recorded, "
            "so either there was none or moe-watch was away."
        )
    if len(coverage.silent) > 3:
        yield f"What happened in {len(coverage.silent) - 3} more silent stretches."
    lost = sum(coverage.dropped.values())
    if lost:
        named = amounts.joined([f"{n:,} {name.replace('_', ' ')}" for name, n in sorted(coverage.dropped.items())])
        yield f"What was in {amounts.plural(lost, 'lost frame')}: {named}."
    if coverage.joined is not None and coverage.joined < coverage.requests:
        missing = coverage.requests - coverage.joined
        yield f"Parts of {amounts.plural(missing, 'request')}: routing, latency or HTTP side did not come in time."
    yield from _unmeasured(review)


def _unmeasured(review: Review) -> Iterator[str]:
    coverage = review.coverage
    if not coverage.shadowed and coverage.requests:
        yield "Whether the outputs are good: none was compared with a dense model."
    elif coverage.shadowed and coverage.requests:
        share = amounts.share(coverage.shadowed / coverage.requests)
        yield f"Quality beyond the {share} of requests that the dense model replayed; intervals allow for that."
    if isinstance(review.canaries, Missing):
        yield "Whether a change is the model's: no canary was replayed."
    if not coverage.confidence and coverage.routed:
        yield "How sure the router was: its logits were not recorded (MOE_WATCH_CONFIDENCE)."
    if coverage.rows_since is not None and coverage.rows_since > review.period.since + 86_400:
        oldest = amounts.moment(coverage.rows_since)
        yield f"Single requests before {oldest}: their rows were pruned, the sums were kept."
    yield "Intervals of shares count requests as independent; those of one session are not quite."
