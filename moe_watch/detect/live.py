"""The live path: score a batch, feed the drift detectors, say when a drift starts and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect import drift
from moe_watch.detect.baseline import Baseline
from moe_watch.detect.batch import Batch
from moe_watch.detect.channels import channel_scores
from moe_watch.detect.ood import OodScores, score

_BACK = 200  # requests that must look normal before a drift is over


@dataclass(frozen=True)
class Alarm:
    """A drift that starts (``started``) or is over.

    ``at`` is the index in the batch; ``layer`` is set when the channel is one layer's; ``began`` is how many requests
    before ``at`` the change is estimated to have begun; ``evidence`` is relative to the threshold (1 at the alarm).
    """

    at: int
    started: bool
    channel: str
    layer: int | None
    began: int
    evidence: float


@dataclass(frozen=True)
class Observation:
    """What a batch showed; ``evidence`` is log evidence over log threshold, by channel in ``channels``."""

    ood: OodScores
    alarms: list[Alarm]
    evidence: float
    channels: dict[str, float]


@dataclass(frozen=True)
class LiveState:
    """Where the detectors stand after the requests seen so far."""

    threshold: float
    tolerance: float
    bank: drift.Bank
    mass: NDArray[np.float64]  # [channels, levels, bets] Shiryaev-Roberts sums
    age: NDArray[np.int64]  # [channels, levels, bets] requests since each sum was last below 1
    alarmed: bool
    calm: int  # requests since the last sign of the drift, while alarmed
    channel: str
    layer: int | None


def start(baseline: Baseline, average_run_length: float, tolerance: float = 0.0) -> LiveState:
    """Return the state before the first request; false alarms come ``average_run_length`` requests apart or more."""
    layers = baseline.layers
    channels = baseline.scores.shape[1]
    weights = np.ones(channels)
    weights[1 : 1 + layers] = 1 / layers
    weights[1 + layers :] = 1 / (channels - 1 - layers)
    bank = drift.bank(baseline.scores, weights)
    zero = np.zeros((channels, drift.LEVELS.size, drift.BETS.size))
    return LiveState(
        average_run_length, tolerance, bank, zero, zero.astype(np.int64), alarmed=False, calm=0, channel="", layer=None
    )


def observe(baseline: Baseline, state: LiveState, batch: Batch) -> tuple[LiveState, Observation]:
    """Return the state after ``batch`` and what the batch showed; ``state`` itself is left as it was."""
    ood = score(baseline, batch)
    named = channel_scores(baseline, batch)
    alarms: list[Alarm] = []
    for at, factor in enumerate(drift.factors(state.bank, named.values)):
        mass = (state.mass + 1) * factor
        if state.alarmed:  # evidence beyond the threshold would only delay the end
            mass = np.minimum(mass, state.threshold)
        age = np.where(mass >= 1, state.age + 1, 0)
        state = replace(state, mass=mass, age=age)
        state, alarm = _decide(state, at, named.names, named.layers)
        if alarm is not None:
            alarms.append(alarm)
    return state, Observation(ood, alarms, *_gauges(state, named.names))


def _decide(
    state: LiveState, at: int, names: tuple[str, ...], layers: tuple[int | None, ...]
) -> tuple[LiveState, Alarm | None]:
    """Start or end an alarm after one request."""
    by_channel = state.mass.mean((1, 2)) * state.bank.weights
    ratio = float(by_channel.sum() / state.threshold)
    if not state.alarmed and ratio >= 1:
        top = int(by_channel.argmax())
        level = np.unravel_index(int(state.mass[top].argmax()), state.mass[top].shape)
        alarm = Alarm(at, True, names[top], layers[top], int(state.age[top][level]), ratio)  # noqa: FBT003
        return replace(_reset(state), alarmed=True, channel=alarm.channel, layer=alarm.layer), alarm
    if not state.alarmed:
        return state, None
    calm = 0 if ratio >= 0.01 else state.calm + 1
    if calm < _BACK:
        return replace(state, calm=calm), None
    alarm = Alarm(at, False, state.channel, state.layer, calm, ratio)  # noqa: FBT003
    return replace(_reset(state), alarmed=False), alarm


def _reset(state: LiveState) -> LiveState:
    return replace(state, mass=np.zeros_like(state.mass), age=np.zeros_like(state.age), calm=0)


def _gauges(state: LiveState, names: tuple[str, ...]) -> tuple[float, dict[str, float]]:
    """Return log evidence over log threshold, over all channels and by name of channel."""
    by_channel = state.mass.mean((1, 2)) * state.bank.weights
    scale = np.log(state.threshold)
    named = {
        name: float(np.log1p(by_channel[[n == name for n in names]].sum()) / scale) for name in dict.fromkeys(names)
    }
    return float(np.log1p(by_channel.sum()) / scale), named
