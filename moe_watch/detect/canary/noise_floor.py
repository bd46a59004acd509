"""The distance between replays of the same prompts, and whether one is farther off than healthy ones are.

Every measure is paired by prompt and looks at one *feature* at a time: the share of expert choices that moved in one
layer (total variation of a prompt's fingerprints), the mean absolute change of log-probabilities, the share of prompts
with another output. Two tests, which rest on different assumptions, have to agree before a feature has moved:

- ``permutation``: if the new round is exchangeable with the reference rounds for each prompt on its own, any of the
  R + 1 rounds is equally likely to be the odd one. Ranks of the prompts' deviations are summed, the largest sum over
  all features is compared with that of random relabellings (max-t: Westfall and Young 1993), so the error holds over
  all features together. Needs independent prompts, nothing of the rounds.
- ``prediction``: the mean over prompts, one number a round, lies within Student's prediction bound of the R reference
  rounds. Needs roughly normal means of rounds, nothing of the prompts within a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from moe_watch.detect.canary.replay import Replay, Round, aligned

Kind = Literal["prompt", "decode", "likelihood", "output"]
LOST = -50.0  # log-probability, nats, that stands for one that is not a number
_LIKELIHOOD_RESOLUTION = 1e-4  # nats per token; smaller changes are rounding
NAMING_ERROR = 0.01  # once something moved, what else did is named with this error


@dataclass(frozen=True)
class Feature:
    """One thing that can move; ``layer`` None: all layers together, or not a matter of layers."""

    load: str
    kind: Kind
    layer: int | None = None


@dataclass(frozen=True)
class Deviations:
    """Mean distance of each round's prompts to the other rounds; round -1 is the new one; nan where not comparable."""

    features: tuple[Feature, ...]
    among_all: NDArray[np.float32]  # [rounds, prompts, features] to every other round, new one included
    among_reference: NDArray[np.float32]  # [rounds, prompts, features] to the other reference rounds
    resolution: NDArray[np.float64]  # [features] smallest change of a round's mean


@dataclass(frozen=True)
class Moves:
    """What the two tests say of each feature, in the order of ``Deviations.features``."""

    floor: NDArray[np.float64]  # mean over the reference rounds
    value: NDArray[np.float64]  # of the new round
    p: NDArray[np.float64]  # permutation p-values, adjusted for all features
    t: NDArray[np.float64]  # standardised excess over the floor
    bound: float  # t above which the prediction is left
    naming_bound: float  # the same for naming what moved once something did


def comparable(replays: Sequence[Replay]) -> NDArray[np.bool_]:
    """Return which prompts were the same tokens, answered and wholly routed in all ``replays`` of one load, ``[n]``."""
    first = replays[0]
    same = np.ones(len(first.prompt), bool)
    for replay in replays:
        same &= replay.answered & (replay.routed == replay.prompt_tokens)
        same &= (replay.prompt_tokens == first.prompt_tokens) & (replay.prompt_digest == first.prompt_digest)
    return same


def deviations(reference: Sequence[Round], new: Round, loads: Sequence[str]) -> Deviations:
    """Measure all features of ``loads`` over the reference rounds and the new one."""
    parts = [_of_load([round_.at(load) for round_ in (*reference, new)], load) for load in loads]
    return Deviations(
        tuple(feature for part in parts for feature in part.features),
        np.concatenate([part.among_all for part in parts], axis=2),
        np.concatenate([part.among_reference for part in parts], axis=2),
        np.concatenate([part.resolution for part in parts]),
    )


def _of_load(replays: Sequence[Replay], load: str) -> Deviations:
    n, layers, _ = replays[0].prompt.shape
    replays = aligned(replays)
    same = comparable(replays)
    stable = same & np.all([(r.output == replays[0].output).all(1) for r in replays], axis=0)
    stable &= replays[0].decode.any((1, 2))
    logprobs = common_logprobs(replays, same)
    last = len(replays) - 1
    total = np.zeros((len(replays), n, 2 * layers + 4), np.float32)
    old = np.zeros_like(total)
    for a, b in combinations(range(len(replays)), 2):
        distance = np.concatenate(
            [
                _by_layer(replays[a].prompt, replays[b].prompt, same),
                _by_layer(replays[a].decode, replays[b].decode, stable),
                mean_change(logprobs[a], logprobs[b])[:, None],
                np.where(same, (replays[a].output != replays[b].output).any(1), np.nan)[:, None],
            ],
            axis=1,
        )
        total[[a, b]] += distance / last
        if b == last:
            old[b] += distance / last
        else:
            old[[a, b]] += distance / (last - 1)
    features = [Feature(load, kind, layer) for kind in _ROUTED for layer in [*range(layers), None]]
    features += [Feature(load, "likelihood"), Feature(load, "output")]
    return Deviations(tuple(features), total, old, _resolution(replays[0], same, stable, layers))


_ROUTED: tuple[Kind, Kind] = ("prompt", "decode")


def _shares(counts: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return counts ``[n, layers, experts]`` as shares of each layer's choices, 0 where there are none."""
    total = counts.sum(-1, keepdims=True, dtype=np.float32)
    share: NDArray[np.float32] = np.zeros(counts.shape, np.float32)
    np.divide(counts, total, out=share, where=total > 0, dtype=np.float32)
    return share


def layer_shift(a: NDArray[np.uint32], b: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Return the share of choices that differ between counts ``[n, layers, experts]``: total variation ``[n, layers]``.

    >>> layer_shift(np.array([[[3, 1, 0]]], np.uint32), np.array([[[2, 1, 1]]], np.uint32)).tolist()
    [[0.25]]
    """
    return np.asarray(np.abs(_shares(a) - _shares(b)).sum(-1) / 2, np.float32)


def _by_layer(a: NDArray[np.uint32], b: NDArray[np.uint32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the shift of each layer and their mean, ``[n, layers + 1]``, nan outside ``mask``."""
    moved = layer_shift(a, b)
    moved = np.concatenate([moved, moved.mean(1, keepdims=True)], axis=1)
    moved[~mask] = np.nan
    return moved


def common_logprobs(replays: Sequence[Replay], same: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
    """Return log-probabilities ``[n, tokens]`` of the tokens that all replays scored in the same context."""
    replays = aligned(replays)
    parts = []
    if all(np.isfinite(r.prompt_logprob).any() for r in replays):
        scored = np.any([np.isfinite(r.prompt_logprob) for r in replays], axis=0)
        parts.append([_where(r.prompt_logprob, scored) for r in replays])
    equal = np.all([(r.output == replays[0].output) & (r.output >= 0) for r in replays], axis=0)
    before_divergence = np.logical_and.accumulate(equal, axis=1)
    parts.append([_where(r.output_logprob, before_divergence) for r in replays])
    joined = [np.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True)]
    for values in joined:
        values[~same] = np.nan
    return joined


def _where(values: NDArray[np.float32], scored: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(scored, np.nan_to_num(values, nan=LOST, neginf=LOST, posinf=LOST), np.nan).astype(np.float32)


def mean_change(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean absolute change of each prompt's log-probabilities, nats per token, nan where none is scored."""
    scored = np.isfinite(a)
    tokens = scored.sum(1)
    change = np.abs(np.where(scored, a - b, 0)).sum(1)
    mean: NDArray[np.float32] = np.full(len(a), np.nan, np.float32)
    np.divide(change, tokens, out=mean, where=tokens > 0, dtype=np.float32)
    return mean


def _resolution(replay: Replay, same: NDArray[np.bool_], stable: NDArray[np.bool_], layers: int) -> NDArray[np.float64]:
    """Return by how much a round's mean moves when a single choice of a single prompt does, per feature."""
    steps = []
    for counts, mask in ((replay.prompt, same), (replay.decode, stable)):
        choices = counts[mask, 0].sum(1)
        step = float(np.mean(1 / np.maximum(choices, 1)) / len(choices)) if len(choices) else 1.0
        steps += [step] * layers + [step / layers]
    return np.array([*steps, _LIKELIHOOD_RESOLUTION, 1 / max(1, int(same.sum()))])


def permutation(measured: Deviations, error: float, seed: int) -> NDArray[np.float64]:
    """Return a p-value per feature that the new round is the odd one, adjusted for looking at all features.

    Exact up to the 10 / ``error`` random relabellings drawn with ``seed``.
    """
    rounds = len(measured.among_all)
    usable = np.isfinite(measured.among_all).all(0)
    ranks = rankdata(np.nan_to_num(measured.among_all), axis=0).astype(np.float32) - (rounds + 1) / 2
    ranks *= usable
    spread = np.sqrt((ranks**2).mean(0).sum(0))
    scores = np.divide(ranks, spread, out=np.zeros_like(ranks), where=spread > 0)
    observed = scores[-1].sum(0)
    draws = int(np.ceil(10 / error))
    generator = np.random.default_rng(seed)
    exceeded = np.zeros(len(observed))
    for size in _chunks(draws, 2000):
        sums = np.zeros((size, len(observed)), np.float32)
        for prompt in range(scores.shape[1]):
            sums += scores[generator.integers(rounds, size=size), prompt]
        exceeded += (sums.max(1)[:, None] >= observed - 1e-4).sum(0)
    return np.asarray((1 + exceeded) / (1 + draws))


def _chunks(total: int, size: int) -> list[int]:
    return [size] * (total // size) + ([total % size] if total % size else [])


def prediction(measured: Deviations) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return floor, value of the new round, and its excess in standard deviations of a new healthy round, per feature.

    With R reference rounds, each measured against the other R - 1, the standard deviation of their means is too small
    by (R - 2) / (R - 1), because they share distances; the new round adds its own noise to that of the floor. The
    spread is never taken to be below that of single choices that move on their own (Poisson).
    """
    means = np.nan_to_num(_mean_over_prompts(measured.among_reference))
    old, value = means[:-1], means[-1]
    rounds = len(old)
    floor = old.mean(0)
    spread = old.std(0, ddof=1) * (rounds - 1) / (rounds - 2)
    spread = np.maximum(spread, np.sqrt(measured.resolution * (floor + measured.resolution)))
    return floor, value, (value - floor) / (spread * np.sqrt(1 + 1 / rounds))


def prediction_bound(rounds: int, features: int, error: float) -> float:
    """Return the t that any of ``features`` exceeds with probability ``error`` at most, given ``rounds`` (Bonferroni).

    >>> round(prediction_bound(8, 20, 0.001), 1)
    7.9
    """
    return float(t.ppf(1 - error / features, rounds - 1))


def _mean_over_prompts(values: NDArray[np.float32]) -> NDArray[np.float64]:
    usable = np.isfinite(values)
    count = usable.sum(1)
    total = np.where(usable, values, 0).sum(1, dtype=np.float64)
    mean: NDArray[np.float64] = np.full(total.shape, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean


def moves(measured: Deviations, error: float, seed: int = 0) -> Moves:
    """Run both tests; a feature has moved when its ``p`` is at most ``error`` and its ``t`` above ``bound``."""
    floor, value, standardised = prediction(measured)
    rounds, features = len(measured.among_reference) - 1, len(floor)
    bounds = [prediction_bound(rounds, features, level) for level in (error, NAMING_ERROR)]
    return Moves(floor, value, permutation(measured, error, seed), standardised, *bounds)
