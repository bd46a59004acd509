"""A replica that differs from its siblings is flagged within minutes; replicas that serve alike are left in peace."""

from __future__ import annotations

import numpy as np
import pytest

from bench.simulate import World
from moe_watch.detect.drift import replica
from moe_watch.detect.drift.moments import Moments, of_batch
from moe_watch.detect.drift.replica import Standing

WORLD = World(layers=4, experts=16, top_k=4, topics=6, unseen=2, length=4.0, longest=600)
RUN_LENGTH = 1000.0
A_BLOCK = 40  # requests of a replica
POOL = 6000


class Traffic:
    """Requests of one world, handed to replicas at random; a bad replica gets some of another pool."""

    def __init__(self, moved: tuple[int, float] | None = None, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.normal, self.moved = (WORLD.draw(POOL, np.random.default_rng(9), moved=one) for one in (None, moved))

    def block(self, k: int, bad: int | None = None, n: int = A_BLOCK, *, sessions: bool = False) -> dict[str, Moments]:
        made = {}
        for index in range(k):
            pool = self.moved if index == bad else self.normal
            rows = self.random.integers(0, POOL, n + int(self.random.integers(0, n)))
            if sessions:  # the requests of a replica within a block are alike
                rows = (rows[0] // 50 * 50 + rows % 50) % POOL
            made[f"r{index}"] = of_batch(pool.select(rows))
        return made


def watched(traffic: Traffic, k: int, blocks: int, **more: object) -> list[tuple[int, str]]:
    """Return which replicas were flagged in which block."""
    standings: dict[str, Standing] = {}
    flagged = []
    for at in range(blocks):
        after = replica.observe(standings, traffic.block(k, **more), RUN_LENGTH)  # type: ignore[arg-type]
        flagged += [
            (at, name) for name in after if after[name].deviates and not standings.get(name, replica.new()).deviates
        ]
        standings = after
    return flagged


@pytest.mark.parametrize("k", [3, 8, 50])
def test_the_one_that_deviates_is_flagged_and_no_other(k: int) -> None:
    """A tenth of one layer's choices goes elsewhere at one of k replicas: seen within 20 blocks of a minute."""
    flagged = watched(Traffic((2, 0.1)), k, 20, bad=1)
    assert {name for _, name in flagged} == {"r1"}


def test_replicas_that_serve_alike_are_flagged_no_oftener_than_promised() -> None:
    """Fifty replicas for 300 blocks and eight for 700, a thousand blocks a false flag: at most three flags."""
    assert len(watched(Traffic(seed=1), 50, 300, n=8 * 4)) + len(watched(Traffic(seed=2), 8, 700)) <= 3


def test_sessions_within_a_block_raise_no_flag() -> None:
    """Ranks within a block are fair however much the requests of a replica hang together."""
    assert len(watched(Traffic(seed=3), 8, 300, sessions=True)) <= 1


def test_a_bet_that_pays_too_much_breaks_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paid as if a top fifth were a top one, healthy replicas are flagged again and again."""
    honest = replica._after
    monkeypatch.setattr(
        replica, "_after", lambda before, rank, k, length: honest(before, np.maximum(rank - 2, 1), k, length)
    )
    assert len(watched(Traffic(seed=4), 8, 200)) > 3


def test_a_flag_is_taken_back_when_the_replica_is_mended() -> None:
    """Within half an hour of blocks in which it is like its siblings; a new fault is flagged anew."""
    traffic = Traffic((2, 0.2))
    standings: dict[str, Standing] = {}
    history = []
    for at in range(70):
        bad = 1 if at < 15 or at >= 50 else None
        standings = replica.observe(standings, traffic.block(8, bad), RUN_LENGTH)
        history.append([name for name, one in standings.items() if one.deviates])
    assert history[14] == ["r1"]
    assert history[45] == []
    assert history[69] == ["r1"]


def test_two_deviants_are_both_found() -> None:
    """The one that is flagged first is left out of the comparison of the other."""
    one, other = Traffic((2, 0.2)), Traffic((0, 0.2), seed=5)
    standings: dict[str, Standing] = {}
    for _ in range(40):
        block = one.block(10, bad=1) | {"r7": other.block(8, bad=7)["r7"]}
        standings = replica.observe(standings, block, RUN_LENGTH)
    assert {name for name, state in standings.items() if state.deviates} == {"r1", "r7"}


def test_of_two_replicas_the_baseline_says_which() -> None:
    """Without a baseline two are not judged, since each deviates from the other alike."""
    traffic, normal = Traffic((2, 0.2)), of_batch(WORLD.draw(3000, np.random.default_rng(11)))
    with_it: dict[str, Standing] = {}
    without: dict[str, Standing] = {}
    for _ in range(40):
        block = traffic.block(2, bad=0)
        with_it = replica.observe(with_it, block, RUN_LENGTH, normal)
        without = replica.observe(without, block, RUN_LENGTH)
    assert [name for name, one in with_it.items() if one.deviates] == ["r0"]
    assert all(one.evidence == 0 for one in without.values())


def test_replicas_with_few_requests_are_not_compared() -> None:
    """They neither gain nor lose evidence."""
    traffic = Traffic()
    block = traffic.block(4)
    few = of_batch(traffic.normal.select(slice(0, replica.FEWEST - 1)))
    before = {"r0": replace_mass(7.0)}
    after = replica.observe(before, block | {"r0": few}, RUN_LENGTH)
    assert after["r0"] == before["r0"]
    assert after["r1"].blocks == 1


def replace_mass(value: float) -> Standing:
    fresh = replica.new()
    return Standing([value] * len(fresh.mass))
