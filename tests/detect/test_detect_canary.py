"""The verdict on a round of canaries: what it is called, where it begins, and how often it is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from moe_watch.detect.canary.comparison import Judgement, TooFewRounds, judge
from moe_watch.detect.canary.expert_coverage import unreached
from moe_watch.detect.canary.replay import Replay, Round
from tests.support.canary_world import Fault, World

ALL = (0, 1, 2, 3)


def only(round_: Round) -> Replay:
    return round_.replays[0]


def verdict(world: World, fault: Fault, rounds: int = 8) -> Judgement:
    return judge(world.reference(rounds), world.round(fault))


def test_healthy_round_is_healthy() -> None:
    """A round like those of the reference is healthy, and says how many canaries were compared."""
    found = verdict(World(), Fault())
    assert (found.verdict, found.first_layer, found.compared, found.rounds) == ("healthy", None, 40, 8)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_healthy_rounds_are_flagged_no_more_often_than_promised(spread: float) -> None:
    """Over 300 healthy rounds the share that moved stays within the promise, whatever the rounds have in common."""
    error, simulations = 0.05, 300
    flagged = 0
    for seed in range(simulations):
        world = World(seed=seed, noise=0.05, spread=spread)
        flagged += judge(world.reference(6), world.round(), error=error).effect > 1
    assert flagged <= binom.ppf(0.999, simulations, error)


def test_nothing_moves_where_a_deterministic_engine_repeats_itself() -> None:
    """An engine without any noise is healthy as long as it repeats itself to the bit."""
    world = World(noise=0.0)
    assert verdict(world, Fault()).effect == 0


def test_one_odd_prompt_of_a_deterministic_engine_is_chance() -> None:
    """One prompt that flips once in an engine that never did before is no evidence against the engine."""
    world = World(noise=0.0)
    odd = only(world.round())
    odd.prompt[0, 0, [0, 1]] = odd.prompt[0, 0, [1, 0]]
    assert judge(world.reference(), Round((odd,))).verdict == "healthy"


@pytest.mark.parametrize("layer", ALL)
def test_first_layer_that_moved_is_named(layer: int) -> None:
    """A fault that shows from one layer on is dated to that layer."""
    found = verdict(World(), Fault(share=0.3, layers=tuple(range(layer, 4))))
    assert (found.verdict, found.first_layer) == ("routing", layer)


def test_small_steady_shift_is_found_above_the_noise() -> None:
    """Six per cent of tokens with another expert set are found although two per cent flip anyway."""
    world = World(n=100, noise=0.02)
    found = verdict(world, Fault(share=0.06, layers=ALL), rounds=12)
    assert (found.verdict, found.first_layer) == ("routing", 0)


def test_shift_at_one_batch_size_says_which() -> None:
    """A fault of one batch composition is flagged and named with it."""
    world = World()
    loads = ("1", "16")
    found = judge(world.reference(loads=loads), world.round(Fault(0.2, ALL, loads=("1",)), loads))
    assert (found.verdict, found.loads, found.tested) == ("routing", ("1",), loads)


def test_changed_numerics_are_benign() -> None:
    """A diffuse change that is no larger than another batch size makes is benign, though it is no chance."""
    found = verdict(World(noise=0.0), Fault(share=0.02, layers=ALL))
    assert (found.verdict, found.effect > 1) == ("benign", True)


def test_a_small_change_at_one_place_is_a_fault() -> None:
    """The same size counts as a fault where all layers before it are untouched: numerics are everywhere."""
    found = verdict(World(noise=0.0), Fault(share=0.03, layers=(2, 3)))
    assert (found.verdict, found.reason, found.first_layer) == ("routing", "one_place", 2)


def test_experts_of_lower_precision_are_benign_and_such_a_router_is_not() -> None:
    """Eight per cent of tokens may move behind an untouched first router, not in that router itself."""
    assert verdict(World(noise=0.0), Fault(share=0.08, layers=(1, 2, 3))).verdict == "benign"
    assert verdict(World(noise=0.0), Fault(share=0.08, layers=ALL)).verdict == "routing"


def test_lost_likelihood_makes_a_small_change_a_fault() -> None:
    """A change within the numerics is a fault when the text lost likelihood."""
    found = verdict(World(noise=0.0), Fault(share=0.02, layers=ALL, nats=0.05))
    assert (found.verdict, found.reason) == ("routing", "loss")
    assert found.loss is not None
    assert found.loss.nats == pytest.approx(0.04, abs=0.012)


def test_fault_behind_the_last_router_shows_in_the_text_alone() -> None:
    """Changed log-probabilities with unchanged routing mean the weights behind the last router."""
    found = verdict(World(), Fault(nats=0.2))
    assert (found.verdict, found.first_layer) == ("weights", None)


def test_numbers_that_are_none_are_a_fault() -> None:
    """Log-probabilities that are not numbers are the worst loss of likelihood there is."""
    world = World()
    broken = only(world.round())
    broken = replace(broken, output_logprob=np.full_like(broken.output_logprob, np.nan))
    found = judge(world.reference(), Round((broken,)))
    assert (found.verdict, found.not_numbers) == ("weights", 1.0)


def test_another_number_of_experts_a_token_is_routing() -> None:
    """A changed top-k is named as such."""
    healthy, broken = World(), World(top_k=1)
    assert judge(healthy.reference(), broken.round()).reason == "top_k"


def test_changed_tokens_are_the_deployment() -> None:
    """Prompts that the server tokenises otherwise are a change of the deployment, with the tokens that they gained."""
    world = World()
    new = only(world.round())
    new = replace(new, prompt_tokens=new.prompt_tokens - 1, prompt_digest=new.prompt_digest + 1000)
    found = judge(world.reference(), Round((new,)))
    assert (found.verdict, found.reason, found.changed_prompts, found.added_tokens) == ("deployment", "tokens", 40, -1)


def test_a_few_changed_prompts_leave_the_others_to_be_compared() -> None:
    """A fault is named from the prompts whose tokens did not change; without one, the change itself is told."""
    world = World()
    for fault, expected in ((Fault(0.3, ALL), "routing"), (Fault(), "deployment")):
        new = only(world.round(fault))
        new.prompt_digest[:5] += 1000
        found = judge(world.reference(), Round((new,)))
        assert (found.verdict, found.changed_prompts, found.compared) == (expected, 5, 35)


def test_another_model_is_the_deployment() -> None:
    """A model of another shape cannot be compared."""
    assert judge(World().reference(), World(experts=16).round()).reason == "another_model"


def test_without_data_nothing_is_healthy() -> None:
    """No answers, no routing, a record of zeros and a cache that hid the routing are each blind."""
    world = World()
    new = only(world.round())
    zeros = np.zeros_like(new.prompt)
    all_first = zeros.copy()
    all_first[:, :, 0] = new.prompt.sum(2)
    broken = {
        "no_answer": replace(new, prompt_tokens=np.zeros_like(new.prompt_tokens)),
        "no_routing": replace(new, prompt=zeros),
        "all_zero": replace(new, prompt=all_first),
        "not_comparable": replace(new, prompt=new.prompt // 2),
    }
    reference = world.reference()
    for reason, replay in broken.items():
        found = judge(reference, Round((replay,)))
        assert (found.verdict, found.reason) == ("blind", reason)


def test_a_record_that_moves_without_the_text_is_wrong() -> None:
    """Physical ids after a rebalance look like a rotation of all experts while every token is as likely as before."""
    world = World()
    new = only(world.round())
    found = judge(world.reference(), Round((replace(new, prompt=np.roll(new.prompt, 1, axis=2)),)))
    assert (found.verdict, found.reason) == ("blind", "record")


def test_loads_that_the_reference_lacks_are_blind() -> None:
    """A round at loads that were never recorded cannot be judged."""
    world = World()
    assert judge(world.reference(loads=("1",)), world.round(loads=("16",))).reason == "no_common_load"


def test_too_few_rounds_are_refused() -> None:
    """Three rounds make no noise floor."""
    world = World()
    with pytest.raises(TooFewRounds, match="3 healthy rounds are too few"):
        judge(world.reference(3), world.round())


def test_the_order_of_the_reference_does_not_matter() -> None:
    """The same rounds in another order give the same verdict and effect."""
    world = World()
    reference, new = world.reference(), world.round(Fault(0.3, (2, 3)))
    one, other = judge(reference, new), judge(reference[::-1], new)
    assert (one.verdict, one.first_layer) == (other.verdict, other.first_layer)
    assert one.effect == pytest.approx(other.effect, rel=1e-4)


def test_a_change_that_only_all_layers_together_make_certain_has_its_size() -> None:
    """Noise hides which layer moved for certain; that all of them moved by more than numerics do is a fault."""
    world = World(seed=2, noise=0.1, spread=0.2, n=60)
    found = judge(world.reference(8), world.round(Fault(0.12, ALL)))
    assert [(e.feature.kind, e.feature.layer) for e in found.effects] == [("prompt", None)]
    assert (found.verdict, found.reason) == ("routing", "size")


def test_experts_that_the_canaries_hardly_use_are_told() -> None:
    """A fault of an expert that no canary reaches cannot be seen by canaries, so it is named when they are recorded."""
    world = World(noise=0.0)
    reference = world.reference(4)
    for one in reference:
        for counts in (only(one).prompt, only(one).decode):
            counts[:, 2, 5] = 0
    assert np.argwhere(unreached(reference)).tolist() == [[2, 5]]
