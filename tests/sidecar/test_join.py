"""The join: three parts of a request become one, whatever comes in whatever order, or not at all."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from moe_watch import wire
from moe_watch.domain.request import Joined
from moe_watch.sidecar import join as joining
from moe_watch.sidecar.join import Join
from tests.support.frames import Tap

_TIMEOUT = 5.0


def _complete(found: list[Joined]) -> list[bool]:
    return [joined.complete for joined in found]


@given(st.permutations(range(3)))
def test_the_order_of_the_parts_does_not_matter(order: list[int]) -> None:
    """The request is complete with its third part and not before."""
    tap, join = Tap(), Join(_TIMEOUT)
    frames = tap.whole("cmpl-1")
    found = [join.add([frames[index]], 0.0) for index in order]
    assert [len(joined) for joined in found] == [0, 0, 1]
    (joined,) = found[2]
    assert (joined.routing, joined.latency, joined.request) == tuple(frames)
    assert joined.complete
    assert len(join) == 0


def test_a_part_that_never_comes_is_waited_for_so_long() -> None:
    """After the timeout the request goes on with what came, and is not complete."""
    tap, join = Tap(), Join(_TIMEOUT)
    join.add(tap.whole("cmpl-0"), 0.0)
    join.add(tap.whole("cmpl-1")[:2], 1.0)
    assert join.expire(5.9) == []
    (joined,) = join.expire(6.0)
    assert joined.request is None
    assert not joined.complete


def test_a_part_that_the_replica_never_sends_is_not_waited_for_for_ever() -> None:
    """Without the middleware, requests are complete with routing and latency once the replica is known a while."""
    tap, join = Tap(), Join(_TIMEOUT)
    join.add(tap.whole("cmpl-1")[:2], 0.0)
    assert _complete(join.expire(5.0)) == [True]
    assert _complete(join.add(tap.whole("cmpl-2")[:2], 6.0)) == [True]


def test_late_and_double_parts_are_counted_and_change_nothing() -> None:
    """What comes after the timeout is late; the same part twice is a duplicate."""
    tap, join = Tap(), Join(_TIMEOUT)
    routing, latency, request = tap.whole("cmpl-1")
    join.add([routing, routing, latency], 0.0)
    assert join.refused == {"duplicate": 1}
    join.expire(10.0)
    assert join.add([request], 11.0) == []
    assert join.refused == {"duplicate": 1, "late": 1}


@given(st.permutations(range(5)))
def test_one_http_request_serves_all_its_choices(order: list[int]) -> None:
    """With n = 2 each choice has its own routing and the latency of its length, though vLLM numbers neither."""
    tap, join = Tap(), Join(_TIMEOUT)
    frames: list[wire.AnyFrame] = [
        tap.routing("cmpl-1", choice=0, decode_routed=3),
        tap.routing("cmpl-1", choice=1, decode_routed=16),
        tap.latency("cmpl-1", output_tokens=17),
        tap.latency("cmpl-1", output_tokens=4),
        tap.request("cmpl-1", choices=2),
    ]
    found = [joined for index in order for joined in join.add([frames[index]], 0.0)]
    assert [joined.choice for joined in found] == [0, 1]
    assert [joined.latency.output_tokens for joined in found if joined.latency] == [4, 17]
    assert all(joined.complete and joined.request is frames[4] for joined in found)


def test_what_came_counts_besides_what_was_said() -> None:
    """A list of prompts makes more choices than ``n`` says; a latency that is there waits for its routing."""
    tap, join = Tap(), Join(_TIMEOUT)
    frames = [tap.routing("cmpl-1", choice=0), tap.latency("cmpl-1", choice=0), tap.latency("cmpl-1", choice=1)]
    assert join.add([*frames, tap.request("cmpl-1", choices=1)], 0.0) == []
    assert _complete(join.add([tap.routing("cmpl-1", choice=1)], 0.0)) == [True, True]


def test_latencies_that_know_their_choice_keep_it() -> None:
    """A choice's own number wins over its length."""
    tap, join = Tap(), Join(_TIMEOUT)
    found = join.add(
        [
            tap.request("cmpl-1", choices=2),
            tap.routing("cmpl-1", choice=0, decode_routed=3),
            tap.routing("cmpl-1", choice=1, decode_routed=16),
            tap.latency("cmpl-1", choice=0, output_tokens=17),
            tap.latency("cmpl-1", choice=1, output_tokens=4),
        ],
        0.0,
    )
    assert [joined.latency.output_tokens for joined in found if joined.latency] == [17, 4]


def test_the_same_id_at_two_replicas_is_two_requests() -> None:
    """The key has the replica in it."""
    join = Join(_TIMEOUT)
    found = [joined for name in ("a", "b") for joined in join.add(Tap(replica=name).whole("cmpl-1"), 0.0)]
    assert [joined.replica for joined in found] == ["a", "b"]


def test_a_request_refused_by_the_http_layer_does_not_wait() -> None:
    """A 400 never reaches the engine."""
    tap, join = Tap(), Join(_TIMEOUT)
    assert _complete(join.add([tap.request("cmpl-1", status=400)], 0.0)) == [True]


def test_an_aborted_request_needs_no_latency() -> None:
    """A request whose client went away has no statistics in vLLM."""
    tap, join = Tap(), Join(_TIMEOUT)
    join.add(tap.whole("cmpl-0"), 0.0)
    frames = [tap.routing("cmpl-1", outcome="aborted"), tap.request("cmpl-1", disconnected=True)]
    assert _complete(join.add(frames, 10.0)) == [True]


def test_memory_is_bounded() -> None:
    """Beyond a number of open requests the oldest goes on without its missing parts."""
    tap, join = Tap(), Join(_TIMEOUT, most_open=10)
    found = [joined for number in range(25) for joined in join.add([tap.routing(f"cmpl-{number}")], 0.0)]
    assert [joined.request_id for joined in found] == [f"cmpl-{number}" for number in range(15)]
    assert len(join) == 10
    assert len(join.flush()) == 10


def test_large_parts_are_bounded_in_bytes() -> None:
    """However few they are: the oldest goes on without what is missing."""
    tap, join = Tap(), Join(_TIMEOUT, most_bytes=1 << 20)
    counts = wire.Counts("u1", bytes(1 << 18))
    found = [joined for number in range(20) for joined in join.add([tap.routing(f"c-{number}", prompt=counts)], 0.0)]
    assert len(join) == 3
    assert len(found) == 17
    assert join.bytes <= join.most_bytes
    join.flush()
    assert join.bytes == 0


def test_a_claim_of_endless_choices_is_bounded() -> None:
    """A wrong number of choices costs a wait, not memory."""
    tap, join = Tap(), Join(_TIMEOUT)
    join.add([tap.request("cmpl-1", choices=2**30), *(tap.latency("cmpl-1") for _ in range(2000))], 0.0)
    assert len(join.flush()) == joining._MOST_CHOICES


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 3)), max_size=60))
def test_every_request_comes_out_once(sent: list[tuple[int, int, int]]) -> None:
    """Whatever arrives, no (request, choice) comes out twice, none is forgotten, and no routing but what is late."""
    tap, join, clock = Tap(), Join(_TIMEOUT), itertools.count()
    found: list[Joined] = []
    for request, part, choice in sent:
        make = (tap.routing, tap.latency, tap.request)[part]
        more = {"choices": 1} if part == 2 else {"choice": choice if part == 0 else 0}
        found += join.add([make(f"cmpl-{request}", **more)], float(next(clock)))  # type: ignore[operator]
        found += join.expire(float(next(clock)))
    found += join.flush()
    keys = [(joined.request_id, joined.choice) for joined in found]
    assert len(keys) == len(set(keys))
    assert {request_id.split("~")[0] for request_id, _ in keys} == {f"cmpl-{request}" for request, _, _ in sent}
    routed = [(joined.routing.source, joined.routing.seq) for joined in found if joined.routing is not None]
    assert len(routed) == len(set(routed)) >= sum(part == 0 for _, part, _ in sent) - join.refused["late"]


@given(st.permutations(range(9)))
def test_requests_with_one_and_the_same_id_are_as_many_as_they_are(order: list[int]) -> None:
    """However their parts are mixed: three requests come out, under ids that lead back to the one."""
    tap, join = Tap(), Join(_TIMEOUT)
    join.add(tap.whole("cmpl-0"), 0.0)
    frames = [frame for _ in range(3) for frame in tap.whole("cmpl-1")]
    found = [*join.add([frames[index] for index in order], 0.0), *join.flush()]
    assert sum(joined.routing is not None for joined in found) == 3
    assert len({joined.request.seq for joined in found if joined.request is not None}) == 3
    assert {joined.request_id.split("~")[0] for joined in found} == {"cmpl-1"}


def test_a_constant_id_hides_no_request() -> None:
    """One after the other, as one client sends them, each is complete and has an id of its own."""
    tap, join = Tap(), Join(_TIMEOUT)
    found = [joined for _ in range(600) for joined in join.add(tap.whole("cmpl-1"), 0.0)]
    assert _complete(found) == [True] * 600
    assert len({joined.request_id for joined in found}) == 600
    assert not join.refused
    assert len(join) == 0
    assert not join._named


def test_choices_that_a_request_did_not_own_up_to_are_counted() -> None:
    """A body that could not be read says one; what the engine routed comes out all the same."""
    tap, join = Tap(), Join(_TIMEOUT)
    found = join.add([*tap.whole("cmpl-1"), *(tap.routing("cmpl-1", choice=choice) for choice in range(1, 8))], 0.0)
    found += join.flush()
    assert sorted(joined.choice for joined in found if joined.routing is not None) == list(range(8))


def test_a_retry_of_a_refused_request_by_another_process_is_counted() -> None:
    """It has the same id, and what the refused one lacked is no late part of that."""
    join, first, second = Join(5), Tap(), Tap(source="engine-1")
    join.add(first.whole("cmpl-0"), 0.0)  # from then on all three parts are expected
    assert len(join.add([first.request("cmpl-1", status=503)], 0.0)) == 1
    retried = join.add(second.whole("cmpl-1"), 1.0)
    assert [one.complete for one in retried] == [True]
    assert not join.refused
