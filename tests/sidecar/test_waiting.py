"""What waits for the judge is bounded in bytes, and a tap is heard whatever else comes."""

from __future__ import annotations

from moe_watch import wire
from moe_watch.domain import memory
from moe_watch.domain.request import Joined
from moe_watch.sidecar.waiting import Waiting
from tests.support.frames import Tap

_MOST = 1 << 20


def _large(number: int) -> Joined:
    routing = Tap().routing("cmpl", prompt=wire.Counts("u1", bytes(1 << 18)))
    size = memory.weigh(routing)
    return Joined("r0", f"cmpl-{number}", 0, routing, None, None, complete=False, size=size)


def test_requests_that_do_not_fit_are_dropped_and_counted() -> None:
    """Those that are being judged count until they are."""
    waiting = Waiting(_MOST)
    waiting.put([_large(number) for number in range(5)])
    batch = waiting.take()
    assert len(batch.joined) == 2
    waiting.put([_large(9)])
    assert waiting.refused == {"memory": 4}
    waiting.done(batch)
    waiting.put([_large(10)])
    assert [one.request_id for one in waiting.take().joined] == ["cmpl-10"]


def test_notes_have_room_of_their_own() -> None:
    """A flood of requests hides no health, and a flood of notes is bounded as well."""
    waiting, tap = Waiting(_MOST), Tap()
    waiting.put([_large(number) for number in range(5)], [tap.health()])
    assert len(waiting.take().notes) == 1
    event = wire.Event(**tap.engine(), kind="engine_start", detail="x" * 2000, at=1.0)
    waiting.put([], [event] * 1000)
    assert 50 < len(waiting.take().notes) < 150
    assert not waiting.take()
