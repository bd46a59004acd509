"""Who is chosen for the shadow, how much of it there is, and when it stays away."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_watch.shadow.budget import Allowance, Breaker
from moe_watch.shadow.sampling import Rates, chosen, place


def breaker_(failures_at_most: int = 5) -> Breaker:
    return Breaker(random.Random(1), failures_at_most=failures_at_most)  # noqa: S311 - jitter


RATES = Rates(base=0.1, ood=1.0, alpha=0.01)


def test_places_are_uniform_and_stable() -> None:
    """Ids hash evenly over 0..1, and an id always to the same place."""
    places = np.array([place(f"chatcmpl-{i}", 0) for i in range(20_000)])
    assert np.histogram(places, 10, (0, 1))[0] == pytest.approx(np.full(10, 2000), abs=150)
    assert place("chatcmpl-abc-1", 2) == pytest.approx(0.06121, abs=1e-5)


def test_choices_of_one_request_are_chosen_alone() -> None:
    """Several outputs of a request do not share one fate."""
    assert len({place("chatcmpl-abc", choice) for choice in range(8)}) == 8


@given(st.text(min_size=1, max_size=40), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_share_is_part_of_a_larger_one(request_id: str, one: float, other: float) -> None:
    """Lowering a rate only takes requests away."""
    low, high = sorted((one, other))
    assert not chosen(request_id, 0, low) or chosen(request_id, 0, high)


def test_unusual_requests_are_over_sampled() -> None:
    """A p-value up to alpha gives the OOD rate; a larger or missing one the base rate."""
    assert [RATES.probability(p) for p in (0.001, 0.01, 0.011, None)] == [1.0, 1.0, 0.1, 0.1]


def test_weights_undo_choice_and_load_shedding() -> None:
    """While load is shed the weighted count of unusual requests still estimates the true one."""
    rates, total = RATES, 0.0
    for i in range(40_000):
        rates = rates.adapt(fill=0.9) if i % 1000 == 0 and i < 3000 else rates
        p = 0.001 if i % 20 == 0 else 0.5
        probability = rates.probability(p)
        if p == 0.001 and chosen(f"r{i}", 0, probability):
            total += 1 / probability
    assert total == pytest.approx(2000, rel=0.1)


def test_shedding_halves_and_recovers_slowly() -> None:
    """A filling queue halves the rates, an empty one raises them by a tenth, never above the settings."""
    shed = RATES.adapt(0.6)
    assert shed.probability(None) == pytest.approx(0.05)
    assert shed.adapt(0.3) == shed
    assert shed.adapt(0.0).probability(None) == pytest.approx(0.055)
    assert RATES.adapt(0.0) == RATES


def test_allowance_holds_the_rate() -> None:
    """Over 100 s at 10 a second about 1,000 units go, in pieces of 7."""
    allowance, now, spent = Allowance(per_s=10), 0.0, 0
    while now < 100:
        now += allowance.wait(now)
        allowance.spend(7, now)
        spent += 7
    assert spent == pytest.approx(1000, abs=60)


def test_a_request_above_the_burst_runs_and_others_wait() -> None:
    """A 100,000-token request is not starved; it puts the budget in debt."""
    allowance = Allowance(per_s=1000)
    assert allowance.wait(0) == 0
    allowance.spend(100_000, 0)
    assert allowance.wait(1) == pytest.approx(99)


def test_breaker_opens_after_failures_and_lets_one_try() -> None:
    """Five failures in a row open it; after the pause exactly one request may try; success closes it."""
    breaker = breaker_()
    for _ in range(5):
        assert breaker.admit(0)
        breaker.failed(0)
    assert breaker.state(0) == "open"
    assert not breaker.admit(0.5)
    assert breaker.admit(2.1)
    assert not breaker.admit(2.1)
    breaker.succeeded()
    assert breaker.state(2.2) == "closed"


def test_breaker_pauses_grow_to_a_limit() -> None:
    """Each failed try doubles the pause, with jitter, up to two minutes."""
    breaker, now, pauses = breaker_(1), 0.0, []
    for _ in range(12):
        assert breaker.admit(now)
        breaker.failed(now)
        assert breaker.open_until is not None
        pauses.append(breaker.open_until - now)
        now = breaker.open_until
    assert 1 <= pauses[0] <= 2
    assert all(60 <= pause <= 120 for pause in pauses[-3:])


def test_scattered_failures_do_not_open_it() -> None:
    """Only failures in a row count."""
    breaker = breaker_()
    for _ in range(20):
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state(0) == "closed"
