"""What harmless numerics do to routing and log-probabilities, and how much likelihood a round lost.

Another batch size is another shape of every matrix product and so another order of its sums: what differs between the
same prompts replayed alone and among others is what changed numerics do to this model (about 10 % of routers between
two engines, arXiv 2510.11370).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from moe_watch.detect.canary.noise_floor import common_logprobs, comparable, layer_shift, mean_change
from moe_watch.detect.canary.replay import Replay, Round

_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Numerics:
    """What another batch composition moves: ``choices [layers]`` as a share, ``change`` in nats per token."""

    choices: NDArray[np.float64]
    change: float


@dataclass(frozen=True)
class Loss:
    """Log-likelihood lost on the same tokens, nats per token, with its 99 % interval over prompts; nan without data."""

    nats: float
    lower: float
    upper: float


def numerics(reference: Sequence[Round], loads: Sequence[str]) -> Numerics:
    """Measure the healthy rounds against themselves across ``loads``; zeros where there is only one load."""
    layers = reference[0].shape[1]
    choices, change = [np.zeros(layers)], [0.0]
    for a, b in combinations(loads, 2):
        pairs = [_across(round_.at(a), round_.at(b)) for round_ in reference]
        choices.append(np.mean([shift for shift, _ in pairs], axis=0))
        change.append(float(np.mean([moved for _, moved in pairs])))
    return Numerics(np.max(choices, axis=0), max(change))


def _across(a: Replay, b: Replay) -> tuple[NDArray[np.float64], float]:
    same = comparable([a, b])
    shift = layer_shift(a.prompt, b.prompt)[same]
    change = mean_change(*common_logprobs([a, b], same))
    layers = shift.mean(0) if len(shift) else np.zeros(a.prompt.shape[1])
    return layers, float(np.nan_to_num(np.nanmean(change))) if np.isfinite(change).any() else 0.0


def likelihood_loss(reference: Sequence[Round], new: Round, loads: Sequence[str]) -> Loss:
    """Return the loss of ``new`` on tokens that all rounds scored in the same context, the loads averaged."""
    by_load = []
    for load in loads:
        replays = [round_.at(load) for round_ in (*reference, new)]
        logprobs = common_logprobs(replays, comparable(replays))
        scored = np.isfinite(logprobs[-1])
        change = np.where(scored, np.mean(logprobs[:-1], axis=0) - logprobs[-1], 0).sum(1)
        tokens = scored.sum(1)
        by_load.append(np.divide(change, tokens, out=np.full(len(tokens), np.nan), where=tokens > 0))
    each = np.array(by_load)
    usable = np.isfinite(each)
    n = usable.sum(0)
    lost = np.divide(np.where(usable, each, 0).sum(0), n, out=np.full(n.shape, np.nan), where=n > 0)
    lost = lost[np.isfinite(lost)]
    if len(lost) < 2:
        return Loss(*(float("nan"),) * 3)
    mean = float(lost.mean())
    half = float(t.ppf((1 + _CONFIDENCE) / 2, len(lost) - 1) * lost.std(ddof=1) / np.sqrt(len(lost)))
    return Loss(mean, mean - half, mean + half)
