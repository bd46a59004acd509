"""Which layers and experts moved, in words."""

from __future__ import annotations

from moe_watch.domain import status
from moe_watch.report.say import location


def test_a_place_is_told_in_shares_and_with_its_bound() -> None:
    """Layers first; experts once they can be named, with how many of them may be wrong; of a replica, against whom."""
    few = status.Where(120, [12, 3], None, None)
    assert "Most moved: layers 12 and 3, over the 120 requests after the alarm" in location.where(few, "traffic")[0]
    assert "it takes 500" in location.where(few, "traffic")[0]
    many = status.Where(900, [12, 3], 17, [status.Moved(12, 87, 0.008, 0.024, 1.1)])
    (sentence,) = location.where(many, "replica")
    assert "of this replica against its siblings'" in sentence
    assert "17 experts moved for certain (at most 10\u202f% of them named falsely)" in sentence
    assert "layer 12: share of expert 87 from 0.80\u202f% to 2.4\u202f% (large" in sentence
    assert "no single expert moved for certain" in location.where(status.Where(900, [1], 0, []), "traffic")[0]
