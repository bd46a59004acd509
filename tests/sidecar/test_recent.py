"""What is remembered of the latest requests is theirs, in order, and bounded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe_watch.detect.common.batch import Batch
from moe_watch.sidecar.monitor.rolling_window import FINGERPRINTS, Ring, RollingWindow


@given(st.integers(1, 9), st.lists(st.lists(st.integers(0, 99), max_size=20), max_size=10))
def test_a_ring_holds_the_last_rows_in_order(size: int, pushes: list[list[int]]) -> None:
    """However they are pushed."""
    ring = Ring(size, (), np.int64)
    for rows in pushes:
        ring.push(rows)
    everything = [row for rows in pushes for row in rows]
    assert ring.rows().tolist() == everything[-size:] if everything else ring.rows().tolist() == []
    assert len(ring) == min(size, len(everything))


def test_the_start_of_a_change_is_a_request_that_was_seen() -> None:
    """So many requests ago, or the oldest that is remembered."""
    recent, counts = RollingWindow(1, 2), np.ones((5, 1, 2), np.uint32)
    assert recent.began_at(3) is None
    recent.add_routing(Batch(counts, counts, 2, finished_at=np.arange(5.0)))
    assert [recent.began_at(ago) for ago in (0, 1, 4, 400)] == [4.0, 3.0, 0.0, 0.0]


def test_fingerprints_are_bounded_and_large_counts_kept_as_large() -> None:
    """A prompt of a million tokens does not wrap round to a small count."""
    recent, counts = RollingWindow(1, 2), np.full((FINGERPRINTS + 9, 1, 2), 10**6, np.uint32)
    recent.add_routing(Batch(counts, counts, 2))
    assert recent.counts.rows().shape == (FINGERPRINTS, 1, 2)
    assert recent.counts.rows().min() == 65_535


def test_requests_without_a_p_value_do_not_dilute_the_share() -> None:
    """Only the scored ones are behind the OOD ratio."""
    recent = RollingWindow(1, 2)
    recent.add_scores(["a", "b", "c"], np.array([np.nan, 0.001, 0.5]), np.array([1.0, 2.0, 3.0]), 0.01)
    assert recent.ood.rows().tolist() == [True, False]
    assert [(s.request_id, s.p, s.at) for s in recent.suspects] == [("b", 0.001, 2.0)]
    recent.forget_scores()
    assert len(recent.ood) == len(recent.suspects) == 0
