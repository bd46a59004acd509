"""The quality of the MoE's outputs against the dense shadow, over any set of replayed requests.

Two measures, each in its own unit: the gap in nats per token (how much less likely the dense model finds the MoE's
output than its own, on the same request) and the share of outputs with a defect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common import weighted_estimates
from moe_watch.detect.common.weighted_estimates import Estimate, Floats
from moe_watch.detect.quality import difference_in_differences, ood_curve

GARBLED = (
    "repetition",
    "encoding",
    "script",
    "json",
    "empty",
    "corrupted",
)  # a refusal or an odd length is not garbled
GROUPS_AT_MOST = 20
FEWEST_IN_GROUP = 10


@dataclass(frozen=True)
class Observed:
    """Sampled requests, one row each; nan where a measure is missing.

    ``defects`` and ``dense_defects`` map a kind of defect to 0/1 flags [n]; ``groups`` maps a dimension (domain,
    modality, context, version) to one label per request.
    """

    at: Floats  # [n] seconds since the epoch
    weight: Floats  # [n] 1 / probability of having been replayed
    sample_weight: Floats  # [n] 1 / probability of the text having been sampled
    outcome: NDArray[np.str_]  # [n] scored, unscored, signals, unsupported, dropped, failed
    nll_moe: Floats  # [n] nats per token of the MoE's output under the dense model
    nll_dense: Floats  # [n] nats per token of the dense model's own output
    ood: Floats  # [n] OOD score
    agreement: Floats  # [n]
    top1: Floats  # [n]
    judge: Floats  # [n] -1..1
    defects: Mapping[str, Floats]
    dense_defects: Mapping[str, Floats]
    groups: Mapping[str, Sequence[str]]

    @property
    def gap(self) -> Floats:
        """The gap of each request in nats per token, above 0 where the MoE is worse; nan where it was not scored."""
        return self.nll_moe - self.nll_dense

    @property
    def garbled(self) -> Floats:
        """1 for each request whose output has a defect of ``GARBLED``, else 0."""
        flags = np.zeros(len(self.at))
        for kind in GARBLED:
            flags = np.maximum(flags, self.defects.get(kind, flags))
        return flags

    def rows(self, keep: NDArray[np.bool_]) -> Observed:
        """Return the requests that ``keep`` [n] marks."""
        return Observed(
            **{name: getattr(self, name)[keep] for name in _COLUMNS},
            defects={kind: flags[keep] for kind, flags in self.defects.items()},
            dense_defects={kind: flags[keep] for kind, flags in self.dense_defects.items()},
            groups={name: list(np.asarray(labels, dtype=str)[keep]) for name, labels in self.groups.items()},
        )


_COLUMNS = (*("at", "weight", "sample_weight", "outcome", "nll_moe", "nll_dense", "ood", "agreement", "top1", "judge"),)


@dataclass(frozen=True)
class Quality:
    """What can be said of the quality of the requests, with 95 % intervals that respect how they were chosen."""

    outcomes: dict[str, int]
    gap: Estimate  # nats per token
    by_group: dict[str, dict[str, Estimate]]  # the gap by dimension and label
    curve: ood_curve.Curve  # the gap by decile of the OOD score
    trend: ood_curve.Trend
    garbled: Estimate  # share of outputs with a defect of GARBLED
    garbled_by_group: dict[str, dict[str, Estimate]]
    garbled_by_decile: tuple[Estimate, ...]
    defects: dict[str, Estimate]  # share by kind, the MoE
    dense_defects: dict[str, Estimate]  # share by kind, the dense model, replayed requests
    agreement: Estimate
    top1: Estimate
    judge: Estimate
    judge_agreement: Estimate  # share of the judge's preferences that the sign of the gap shares; 0.5 is chance
    coverage: float  # share of the sampled requests that were replayed and scored


def review(seen: Observed) -> Quality:
    """Return the quality over all requests of ``seen``; estimates are nan where there is nothing to estimate from."""
    value, weight, garbled = seen.gap, seen.weight, seen.garbled
    part, _ = ood_curve.deciles(seen.ood, seen.sample_weight)
    names, counts = np.unique(seen.outcome, return_counts=True)
    return Quality(
        outcomes={str(name): int(count) for name, count in zip(names, counts, strict=True)},
        gap=weighted_estimates.mean(value, weight),
        by_group={name: _grouped(value, weight, labels) for name, labels in seen.groups.items()},
        curve=ood_curve.curve(value, seen.ood, weight),
        trend=ood_curve.trend(value, seen.ood, weight),
        garbled=weighted_estimates.share(garbled, seen.sample_weight),
        garbled_by_group={
            name: _grouped(garbled, seen.sample_weight, labels, shares=True) for name, labels in seen.groups.items()
        },
        garbled_by_decile=tuple(
            weighted_estimates.share(garbled[part == k], seen.sample_weight[part == k]) for k in range(10)
        ),
        defects={kind: weighted_estimates.share(flags, seen.sample_weight) for kind, flags in seen.defects.items()},
        dense_defects={kind: weighted_estimates.share(flags, weight) for kind, flags in seen.dense_defects.items()},
        agreement=weighted_estimates.mean(seen.agreement, weight),
        top1=weighted_estimates.mean(seen.top1, weight),
        judge=weighted_estimates.mean(seen.judge, weight),
        judge_agreement=_judge_agreement(seen),
        coverage=_coverage(seen),
    )


def compare(before: Observed, after: Observed, *, tolerance: float = 0.0) -> difference_in_differences.Difference:
    """Return the difference in differences of the likelihood measures (nats per token) between two periods."""
    return difference_in_differences.difference(
        *(difference_in_differences.Pairs(seen.nll_moe, seen.nll_dense, seen.weight) for seen in (before, after)),
        tolerance=tolerance,
    )


def compare_alike(before: Observed, after: Observed, *, tolerance: float = 0.0) -> difference_in_differences.Difference:
    """Return ``compare`` among requests with OOD scores that both periods have, at the mix of scores of ``before``.

    It tells requests that became more unusual from an MoE that answers the usual ones worse.
    """
    _, edges = ood_curve.deciles(before.ood, before.sample_weight)
    known = ~np.isnan(before.ood)
    # The last tenth has no end: what is beyond the most unusual hundredth was hardly there before.
    edges = np.append(edges, np.quantile(before.ood[known], 0.99) if known.any() else np.nan)
    old, new = (
        (difference_in_differences.Pairs(seen.nll_moe, seen.nll_dense, seen.weight), _strata(seen.ood, edges))
        for seen in (before, after)
    )
    return difference_in_differences.difference(*difference_in_differences.alike(*old, *new), tolerance=tolerance)


def _strata(ood: Floats, edges: Floats) -> NDArray[np.int64]:
    """Return the place of each score between ``edges``; -1 where it is not known."""
    return np.where(np.isnan(ood), -1, np.searchsorted(edges, ood, side="left"))


def _judge_agreement(seen: Observed) -> Estimate:
    """Compare where both say something: a gap above 0 speaks for the dense model, a judge of -1 does too."""
    known = ~np.isnan(seen.gap) & ~np.isnan(seen.judge) & (seen.judge != 0) & (seen.gap != 0)
    alike = (np.sign(seen.judge[known]) == -np.sign(seen.gap[known])).astype(np.float64)
    return weighted_estimates.share(alike, seen.weight[known])


def _coverage(seen: Observed) -> float:
    scored = seen.outcome == "scored"
    return float(scored.mean()) if len(scored) else float("nan")


def _grouped(values: Floats, weights: Floats, labels: Sequence[str], *, shares: bool = False) -> dict[str, Estimate]:
    """Return estimates of the largest groups, the rest together as "other"; small groups are left out."""
    names, counts = np.unique(np.asarray(labels, dtype=str)[~np.isnan(values)], return_counts=True)
    kept = set(names[np.argsort(-counts, kind="stable")][:GROUPS_AT_MOST])
    merged = [str(label) if label in kept else "other" for label in labels]
    found = weighted_estimates.by_group(values, weights, merged, shares=shares)
    return {name: estimate for name, estimate in found.items() if estimate.requests >= FEWEST_IN_GROUP}
