"""One request against the baseline: how unusual, in which layers, by which experts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.batch import Batch, routed_tokens
from moe_watch.detect.fit.baseline_fit import Baseline
from moe_watch.detect.ood import score as ood
from moe_watch.domain import amounts

_MOST: Final = 3  # layers and experts named


@dataclass(frozen=True)
class LayerScore:
    """How far one layer is from normal, in standard deviations of normal requests of the same length."""

    layer: int  # index in the whole model
    score: float


@dataclass(frozen=True)
class ExpertShare:
    """One expert's share of its layer in normal traffic and in this request."""

    layer: int  # index in the whole model
    expert: int
    normal: float
    here: float

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"layer {self.layer}: {amounts.share(self.here)} of the tokens at expert {self.expert}, "
            f"normally {amounts.share(self.normal)}"
        )


@dataclass(frozen=True)
class Comparison:
    """One fingerprint against a baseline; p-values and score are None where the request was too short."""

    tokens: int
    score: float | None
    p: float | None
    p_prompt: float | None
    p_decode: float | None
    layers: tuple[LayerScore, ...]  # all, the most unusual first
    experts: tuple[ExpertShare, ...]  # the largest deviations in the most unusual layers


def compare(
    baseline: Baseline, prompt: NDArray[np.uint32], decode: NDArray[np.uint32], layer_ids: tuple[int, ...]
) -> Comparison:
    """Return how counts ``[layers, experts]`` of prompt and generated text stand against ``baseline``.

    Raises ``ValueError`` when they are of another shape.
    """
    found = ood.score(baseline, Batch(prompt[None], decode[None], baseline.top_k))
    counts = (prompt + decode).astype(np.float64)
    order = np.argsort(-np.nan_to_num(found.layer[0], nan=-np.inf))
    layers = tuple(LayerScore(layer_ids[row], float(found.layer[0, row])) for row in order)
    scored = not math.isnan(float(found.score[0]))
    return Comparison(
        tokens=round(float(routed_tokens(counts[None].astype(np.uint32), baseline.top_k)[0])),
        score=_number(found.score[0]),
        p=_number(found.p[0]),
        p_prompt=_number(found.p_prompt[0]),
        p_decode=_number(found.p_decode[0]),
        layers=layers if scored else (),
        experts=_experts(baseline, counts, order[:_MOST], layer_ids),
    )


def reasons(found: Comparison) -> tuple[str, ...]:
    """Return the deviations in words, the largest first."""
    return tuple(str(expert) for expert in found.experts[:_MOST])


def _experts(
    baseline: Baseline, counts: NDArray[np.float64], rows: NDArray[np.intp], layer_ids: tuple[int, ...]
) -> tuple[ExpertShare, ...]:
    """Return the experts with the largest Hellinger deviation in ``rows``, at most three of a layer."""
    normal = baseline.counts / np.maximum(baseline.counts.sum(1, keepdims=True), 1)
    here = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    gap = np.abs(np.sqrt(here) - np.sqrt(normal))
    places = [(int(row), int(expert)) for row in rows for expert in np.argsort(-gap[row])[:_MOST]]
    places.sort(key=lambda place: -gap[place])
    return tuple(
        ExpertShare(layer_ids[row], expert, float(normal[row, expert]), float(here[row, expert]))
        for row, expert in places
    )


def _number(value: np.floating) -> float | None:
    return None if math.isnan(float(value)) else float(value)
