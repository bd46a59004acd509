"""The live path: score a batch, feed the drift detectors, say when a drift starts and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.drift import channels, recovery, sequential
from moe_watch.detect.drift.recovery import Recovery
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.detect.ood.score import OodScores, assess

_STEP = 64  # requests accumulated at once
NAMES = {"part": "ood"}  # kinds of channels that go by the name of another


@dataclass(frozen=True)
class Alarm:
    """A drift that starts (``started``) or is over.

    ``at`` is the index in the batch; ``layer`` is set when the channel is one layer's; ``began`` is how many requests
    before ``at`` the change is estimated to have begun (at the end: since when the stream is back); ``evidence`` is
    relative to the threshold.
    """

    at: int
    started: bool
    channel: str
    layer: int | None
    began: int
    evidence: float


@dataclass(frozen=True)
class Observation:
    """What a batch showed; ``evidence`` is log evidence over log threshold (1: alarm), by channel in ``channels``."""

    ood: OodScores
    alarms: list[Alarm]
    evidence: float
    channels: dict[str, float]


@dataclass(frozen=True)
class LiveState:
    """Where the detectors stand after the requests seen so far."""

    threshold: float
    bank: sequential.Bank
    kinds: tuple[str, ...]
    layers: tuple[int | None, ...]
    sums: sequential.Sums
    recovery: Recovery | None = None  # set while a drift is on


def start(baseline: Baseline, average_run_length: float, tolerance: float = 0.0) -> LiveState:
    """Return the state before the first request; false alarms come ``average_run_length`` requests apart or more.

    ``tolerance`` is the share of requests that may come from elsewhere without an alarm.
    """
    kinds, layers = channels.names(baseline.layers, len(baseline.views.groups))
    return begin(
        sequential.bank(baseline.scores, kinds, average_run_length, baseline.kept, tolerance),
        kinds,
        layers,
        average_run_length,
    )


def begin(bank: sequential.Bank, kinds: tuple[str, ...], layers: tuple[int | None, ...], threshold: float) -> LiveState:
    """Return the state of a bank before the first request; ``kinds`` and ``layers`` are the channels'."""
    return LiveState(threshold, bank, kinds, layers, sequential.Sums.zero(len(bank.weight)))


def observe(baseline: Baseline, state: LiveState, batch: Batch) -> tuple[LiveState, Observation]:
    """Return the state after ``batch`` and what the batch showed; ``state`` itself is left as it was."""
    seen = assess(baseline, batch)
    state, alarms = follow(state, channels.channel_scores(baseline, seen, batch))
    return state, Observation(seen.scores, alarms, *_gauges(state))


def follow(state: LiveState, scores: NDArray[np.float32]) -> tuple[LiveState, list[Alarm]]:
    """Return the state after requests with channel scores ``[n, channels]``, and where drifts start and end."""
    alarms: list[Alarm] = []
    done = 0
    while done < len(scores):
        step = scores[done : done + _STEP]
        state, used, alarm = (_watch if state.recovery is None else _await_end)(state, step)
        if alarm is not None:
            alarms.append(replace(alarm, at=done + used - 1))
        done += used
    return state, alarms


def _watch(state: LiveState, scores: NDArray[np.float32]) -> tuple[LiveState, int, Alarm | None]:
    """Feed requests while all is well, up to the one that raises an alarm; return how many that were, too."""
    bank = state.bank
    worth, rests = sequential.factors(bank, scores, state.sums.rest)
    mass = sequential.accumulate(state.sums.mass, worth)
    evidence = mass @ bank.weight / state.threshold
    over = np.flatnonzero(evidence >= 1)
    used = int(over[0]) + 1 if over.size else len(scores)
    sums = state.sums.after(worth[:used], mass[used - 1], rests[used - 1])
    if not over.size:
        return replace(state, sums=sums), used, None
    top = int((sums.mass * bank.weight).argmax())
    kind, layer = state.kinds[bank.channel[top]], state.layers[bank.channel[top]]
    alarm = Alarm(0, True, NAMES.get(kind, kind), layer, int(sums.age[top]), float(evidence[used - 1]))  # noqa: FBT003
    return replace(state, sums=sums, recovery=recovery.begin(bank, sums, top)), used, alarm


def _await_end(state: LiveState, scores: NDArray[np.float32]) -> tuple[LiveState, int, Alarm | None]:
    """Feed requests while a drift is on, up to the one that ends it."""
    if state.recovery is None:
        raise AssertionError("no drift is on")
    now, used, over = recovery.observe(state.recovery, state.bank, state.threshold, scores)
    if not over:
        return replace(state, recovery=now), used, None
    top = now.bet
    kind, layer = state.kinds[state.bank.channel[top]], state.layers[state.bank.channel[top]]
    alarm = Alarm(0, False, NAMES.get(kind, kind), layer, now.calm, 0.0)  # noqa: FBT003
    return replace(state, sums=sequential.Sums.zero(len(state.bank.weight)), recovery=None), used, alarm


def _gauges(state: LiveState) -> tuple[float, dict[str, float]]:
    """Return log evidence over log threshold, over all channels and by kind of channel.

    While a drift is on it is 1 or less: what is still missing to its end.
    """
    scale = np.log(state.threshold)
    mass = state.sums.mass * state.bank.weight
    kinds = np.array([NAMES.get(kind, kind) for kind in state.kinds])[state.bank.channel]
    named = {kind: float(np.log1p(mass[kinds == kind].sum()) / scale) for kind in dict.fromkeys(kinds.tolist())}
    if state.recovery is not None:
        return 1 - recovery.progress(state.recovery), named
    return float(np.log1p(mass.sum()) / scale), named
