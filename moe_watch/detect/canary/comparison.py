"""Are the same prompts still routed as before? If not: what moved, where it begins, and is it more than numerics.

The reference is R rounds of healthy replays, each in several batch compositions. A new round is compared with them
prompt by prompt (``noise_floor``). The first layer that moved says where the fault is: in that layer's router, or
behind the router of the layer before it. What only the log-probabilities show lies behind the last router.

Error rate: a healthy round is judged to have moved with probability at most ``error`` if prompts deviate independently
of each other, or if the means of rounds are normal, and at most 1 / (R + 1) if rounds are no more than exchangeable.
A round that moved is still called benign where changed numerics explain it, see ``Tolerance``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.canary.noise_floor import NAMING_ERROR, Feature, Kind, Moves, comparable, deviations, moves
from moe_watch.detect.canary.numerics import Loss, Numerics, likelihood_loss, numerics
from moe_watch.detect.canary.replay import Round, same_loads
from moe_watch.detect.load.blind import sight

Verdict = Literal["healthy", "benign", "routing", "weights", "deployment", "blind"]
FAULTS: frozenset[Verdict] = frozenset({"routing", "weights", "deployment"})
FEWEST_ROUNDS = 4
_FAR = 0.1  # a routing record cannot move this far and leave the text as it was
_CLEAN = 0.1  # a layer that moved by no more than this share of the first one's shift is clean


class TooFewRounds(ValueError):  # noqa: N818 - the message reads as a sentence
    """A noise floor needs more healthy rounds than there are."""

    def __init__(self, given: int) -> None:
        super().__init__(f"{given} healthy rounds are too few for a noise floor: at least {FEWEST_ROUNDS} are needed")


@dataclass(frozen=True)
class Tolerance:
    """What is not a fault though it is no chance: up to ``times`` what another batch composition alone does.

    And always up to ``tokens``: share of tokens that get another expert in a layer. Up to ``tokens_behind`` where the
    first router is untouched and no likelihood is lost: that is what experts of lower precision do (about 10 % of
    routers choose otherwise between two engines, arXiv 2510.11370); a router of lower precision is a fault (sglang
    33764). ``change``: mean absolute change of log-probabilities, nats; ``loss``: log-likelihood lost, nats per token.
    """

    times: float = 1.5
    tokens: float = 0.04
    tokens_behind: float = 0.10
    change: float = 0.02
    loss: float = 0.01


@dataclass(frozen=True)
class Effect:
    """One feature that moved from the ``floor`` of healthy rounds to ``value``: ``ratio`` times the bound of chance."""

    feature: Feature
    floor: float
    value: float
    ratio: float
    p: float


@dataclass(frozen=True)
class Judgement:
    """The verdict on one round and what carries it."""

    verdict: Verdict
    reason: str = ""  # a bounded label, see ``judge``
    first_layer: int | None = None
    loads: tuple[str, ...] = ()  # batch compositions in which something moved
    tested: tuple[str, ...] = ()  # batch compositions that were compared
    effects: tuple[Effect, ...] = ()  # what moved, strongest first
    effect: float = 0.0  # largest shift over the bound of chance, above 1 only if something moved
    by_load: tuple[tuple[str, float], ...] = ()  # the same for each batch composition
    loss: Loss | None = None
    not_numbers: float = 0.0  # share of output tokens whose log-probability is no number, though it was one
    changed_prompts: int = 0  # prompts whose tokens changed
    added_tokens: float = 0.0  # median change of their length
    prompts: int = 0
    compared: int = 0  # prompts that could be compared
    rounds: int = 0  # reference rounds


@dataclass(frozen=True)
class _Rule:
    error: float
    tolerance: Tolerance
    seed: int


def judge(
    reference: Sequence[Round],
    new: Round,
    *,
    error: float = 0.001,
    tolerance: Tolerance | None = None,
    seed: int = 0,
) -> Judgement:
    """Compare ``new`` with the healthy ``reference`` rounds at the loads they share; raises ``TooFewRounds``.

    Reasons: blind: no_answer, no_routing, all_zero, coverage, not_comparable, no_common_load, record (the routing
    record moved far and the text not at all, so the record is wrong); deployment: another_model, tokens; routing:
    top_k, size (more than changed numerics do), one_place (clean before the first layer), loss; weights: size, loss.
    """
    if len(reference) < FEWEST_ROUNDS:
        raise TooFewRounds(len(reference))
    prompts, rounds = new.shape[0], len(reference)

    def simple(verdict: Verdict, reason: str, changed: int = 0, added: float = 0.0) -> Judgement:
        return Judgement(verdict, reason, changed_prompts=changed, added_tokens=added, prompts=prompts, rounds=rounds)

    loads = same_loads([*reference, new])
    if any(round_.shape != new.shape for round_ in reference):
        return simple("deployment", "another_model")
    if not loads:
        return simple("blind", "no_common_load")
    if blind := _blind(new):
        return simple("blind", blind)
    changed, added = _changed_tokens(reference[0], new, loads)
    if changed * 2 > prompts:
        return simple("deployment", "tokens", changed, added)
    if not any(comparable([r.at(load) for r in (*reference, new)]).sum() * 2 > prompts for load in loads):
        return simple("blind", "not_comparable", changed, added)
    return _compare(reference, new, loads, changed, _Rule(error, tolerance or Tolerance(), seed))


def _blind(new: Round) -> str:
    """Return why nothing can be said of the routing in ``new``, empty if something can."""
    answered = np.concatenate([r.answered for r in new.replays])
    counts = np.concatenate([r.prompt for r in new.replays])
    if not answered.any():
        return "no_answer"
    routed = answered & counts.any((1, 2))
    reason = sight(counts[routed], int(routed.sum()), int(answered.sum())).reason
    return "" if reason == "one_route" else reason  # a broken router does that too: the text tells which


def _changed_tokens(reference: Round, new: Round, loads: Sequence[str]) -> tuple[int, float]:
    """Return how many prompts the server tokenises otherwise than before, and the median change of their length."""
    old, now = reference.at(loads[0]), new.at(loads[0])
    told = (old.prompt_digest > 0) & (now.prompt_digest > 0)
    differs = (old.prompt_tokens != now.prompt_tokens) | (told & (old.prompt_digest != now.prompt_digest))
    differs &= old.answered & now.answered
    longer = now.prompt_tokens[differs] - old.prompt_tokens[differs]
    return int(differs.sum()), float(np.median(longer)) if len(longer) else 0.0


def _compare(reference: Sequence[Round], new: Round, loads: Sequence[str], changed: int, rule: _Rule) -> Judgement:
    measured = deviations(reference, new, loads)
    tested = moves(measured, rule.error, rule.seed)
    moved = (tested.p <= rule.error) & (tested.t > tested.bound)
    ratio = np.where(moved, tested.t / tested.bound, np.minimum(tested.t / tested.bound, 1))
    effects = _effects(measured.features, tested, ratio, moved)
    loss = likelihood_loss(reference, new, loads)
    verdict: Verdict = "healthy"
    reason, first = "", None
    if effects:
        named = moved | ((tested.p <= NAMING_ERROR) & (tested.t > tested.naming_bound))
        shifts = _Shifts(measured.features, tested.value - tested.floor, moved, named)
        first = _first_layer(measured.features, named)
        healthy = _Healthy(reference[0].at(loads[0]).top_k, numerics(reference, loads))
        verdict, reason = _weigh(shifts, first, healthy, loss, rule.tolerance)
        if new.at(loads[0]).top_k != healthy.top_k:
            verdict, reason = "routing", "top_k"
    elif changed:
        verdict, reason = "deployment", "tokens"
    return Judgement(
        verdict,
        reason,
        first_layer=first,
        loads=tuple(load for load in loads if any(e.feature.load == load for e in effects)),
        tested=tuple(loads),
        effects=effects,
        effect=float(np.nanmax(ratio)),
        by_load=tuple((load, _largest(measured.features, ratio, load)) for load in loads),
        loss=loss,
        not_numbers=max(0.0, _not_numbers(new, loads) - _not_numbers(reference[0], loads)),
        changed_prompts=changed,
        prompts=new.shape[0],
        compared=max(int(comparable([r.at(load) for r in (*reference, new)]).sum()) for load in loads),
        rounds=len(reference),
    )


@dataclass(frozen=True)
class _Healthy:
    """What the reference says of itself."""

    top_k: int
    numerics: Numerics


@dataclass(frozen=True)
class _Shifts:
    """By how much each feature exceeds its floor, and whether chance cannot explain it.

    ``named`` is what moved by the milder bound that holds once something did: a change that is certain for all layers
    together is as large as the layers make it, though noise hides which single one is certain by itself.
    """

    features: Sequence[Feature]
    excess: NDArray[np.float64]
    moved: NDArray[np.bool_]
    named: NDArray[np.bool_]

    def of(self, *kinds: Kind) -> NDArray[np.bool_]:
        return np.array([feature.kind in kinds for feature in self.features])


def _effects(
    features: Sequence[Feature], tested: Moves, ratio: NDArray[np.float64], moved: NDArray[np.bool_]
) -> tuple[Effect, ...]:
    found = [
        Effect(features[i], float(tested.floor[i]), float(tested.value[i]), float(ratio[i]), float(tested.p[i]))
        for i in np.flatnonzero(moved)
    ]
    return tuple(sorted(found, key=lambda effect: -effect.ratio))


def _not_numbers(round_: Round, loads: Sequence[str]) -> float:
    replays = [round_.at(load) for load in loads]
    tokens = [replay.output >= 0 for replay in replays]
    broken = [t & ~np.isfinite(replay.output_logprob) for t, replay in zip(tokens, replays, strict=True)]
    return sum(int(b.sum()) for b in broken) / max(1, sum(int(t.sum()) for t in tokens))


def _largest(features: Sequence[Feature], ratio: NDArray[np.float64], load: str) -> float:
    of_load = [one for feature, one in zip(features, ratio, strict=True) if feature.load == load]
    return float(np.nanmax(of_load))


def _first_layer(features: Sequence[Feature], moved: NDArray[np.bool_]) -> int | None:
    layers = [feature.layer for feature, yes in zip(features, moved, strict=True) if yes and feature.layer is not None]
    return min(layers) if layers else None


def _weigh(
    shifts: _Shifts, first: int | None, healthy: _Healthy, loss: Loss, tolerance: Tolerance
) -> tuple[Verdict, str]:
    """Say whether what moved is a fault, by size, by place and by what it costs."""
    routed, text = shifts.of("prompt", "decode"), shifts.of("likelihood", "output")
    if (shifts.excess[routed] > _FAR).any() and not shifts.moved[text].any():
        return "blind", "record"
    verdict: Verdict = "routing" if (shifts.moved & routed).any() else "weights"
    if loss.lower > tolerance.loss:
        return verdict, "loss"
    harmless = loss.upper < tolerance.loss
    behind = harmless and first == 1
    limit = np.array([_limit(f, healthy, tolerance, behind=behind) for f in shifts.features])
    sized = shifts.of("likelihood") if verdict == "weights" else routed
    if (sized & shifts.named & (shifts.excess > limit)).any():
        return verdict, "size"
    if first is not None and first >= 2 and _clean_before(shifts, first):
        return verdict, "one_place"
    return "benign", ""


def _limit(feature: Feature, healthy: _Healthy, tolerance: Tolerance, *, behind: bool) -> float:
    """Return how far ``feature`` may move without being a fault; no limit for what has none."""
    if feature.kind in {"prompt", "decode"}:
        tokens = tolerance.tokens_behind if behind else tolerance.tokens
        limits = np.maximum(tokens / healthy.top_k, tolerance.times * healthy.numerics.choices)
        return float(limits.mean() if feature.layer is None else limits[feature.layer])
    if feature.kind == "likelihood":
        return max(tolerance.change, tolerance.times * healthy.numerics.change)
    return float("inf")


def _clean_before(shifts: _Shifts, first: int) -> bool:
    """Say whether the layers before ``first`` are clean where it moved most: changed numerics are everywhere."""
    layers = np.array([-1 if feature.layer is None else feature.layer for feature in shifts.features])
    strongest = int(np.argmax(np.where(layers == first, shifts.excess, -np.inf)))
    of = shifts.features[strongest]
    alike = np.array([feature.load == of.load and feature.kind == of.kind for feature in shifts.features])
    before = shifts.excess[alike & (layers >= 0) & (layers < first)]
    return bool(before.max(initial=0.0) <= _CLEAN * shifts.excess[strongest])
