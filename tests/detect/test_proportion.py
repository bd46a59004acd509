"""The exact interval of a share, at its edges and against values found by hand."""

from __future__ import annotations

import math

import pytest

from moe_watch.detect.common.proportion import Rate, clopper_pearson, exact_interval


def test_without_requests_the_share_is_not_known_and_may_be_anything() -> None:
    found = clopper_pearson(0, 0)
    assert math.isnan(found.value)
    assert (found.lower, found.upper) == (0.0, 1.0)


def test_an_interval_whose_binomial_sum_has_one_term_is_as_solved_by_hand() -> None:
    """No hit among ten: (1 - upper)^10 = 0.025; ten of ten is its mirror; one of two solves a square."""
    assert clopper_pearson(0, 10) == Rate(0.0, 0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == Rate(1.0, pytest.approx(0.025**0.1), 1.0)
    assert clopper_pearson(1, 2) == Rate(0.5, pytest.approx(1 - 0.975**0.5), pytest.approx(0.975**0.5))


def test_an_effective_number_of_requests_lies_between_its_whole_neighbours() -> None:
    fewer, between, more = (exact_interval(0.0, n, 0.95)[1] for n in (10, 10.5, 11))
    assert more < between < fewer
