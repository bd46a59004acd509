"""Ingest: the socket is private, and every frame counts once or is refused with a reason."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_watch import wire
from moe_watch.sidecar import intake as ingest
from moe_watch.sidecar.intake import EndpointError, Intake, bind
from tests.support.frames import Tap


@pytest.fixture(scope="module")
def context() -> zmq.Context[zmq.Socket[bytes]]:
    return zmq.Context()


def _take(intake: Intake, *frames: wire.AnyFrame, now: float = 0.0) -> list[wire.AnyFrame]:
    return intake.take([wire.encode(frame) for frame in frames], now)


def test_the_socket_is_private(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """The directory it makes has mode 0700 and the socket 0600."""
    with bind(context, f"ipc://{tmp_path}/new/tap.sock"):
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "new" / "tap.sock").stat().st_mode) == 0o600


def test_a_taken_endpoint_is_refused(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """A path that somebody listens on is not taken over, and the message says so."""
    endpoint = f"ipc://{tmp_path}/tap.sock"
    with bind(context, endpoint), pytest.raises(EndpointError, match="is taken: another moe-watch"):
        bind(context, endpoint)


def test_a_stale_socket_is_replaced(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """What a killed sidecar left behind is no obstacle."""
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "tap.sock"))
    with bind(context, f"ipc://{tmp_path}/tap.sock"):
        pass


@pytest.mark.parametrize(
    ("endpoint", "why"),
    [
        ("tcp://0.0.0.0:0", "ALLOW_REMOTE_TAPS"),
        ("tcp://*:0", "ALLOW_REMOTE_TAPS"),
        ("inproc://x", "use ipc://"),
        ("ipc:///" + "x" * 120, "longer than"),
        ("ipc:///proc/nowhere/x.sock", "cannot make"),
    ],
)
def test_an_endpoint_that_cannot_be_is_explained(
    endpoint: str, why: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """The message says what is wrong or what to set."""
    with pytest.raises(EndpointError, match=why):
        bind(context, endpoint)


def test_a_file_in_the_way_is_left_alone(tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """A path that is no socket is not deleted."""
    (tmp_path / "tap.sock").write_text("mine")
    with pytest.raises(EndpointError, match="is no socket"):
        bind(context, f"ipc://{tmp_path}/tap.sock")
    assert (tmp_path / "tap.sock").read_text() == "mine"


def test_tcp_on_loopback_needs_no_permission(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Loopback is bound as it is, the rest only when allowed."""
    with bind(context, "tcp://127.0.0.1:*"), bind(context, "tcp://0.0.0.0:*", allow_remote=True):
        pass


def test_a_frame_counts_once() -> None:
    """The same number of the same source is a duplicate; another source's is not."""
    tap, intake = Tap(), Intake()
    frame = tap.routing("cmpl-1")
    assert _take(intake, frame, frame) == [frame]
    assert intake.refused == {"duplicate": 1}
    assert len(_take(intake, msgspec.structs.replace(frame, source="engine-1"))) == 1


@given(st.permutations(range(30)), st.sets(st.integers(0, 29), max_size=10), st.lists(st.integers(0, 29), max_size=10))
@settings(max_examples=50)
def test_order_does_not_matter(order: list[int], lost: set[int], twice: list[int]) -> None:
    """Whatever comes in whatever order counts once, and exactly the gaps are lost."""
    tap, intake = Tap(), Intake()
    frames = [tap.health() for _ in range(30)]
    came = [seq for seq in [*order, *twice] if seq not in lost]
    taken = _take(intake, *(frames[seq] for seq in came))
    assert sorted(frame.seq for frame in taken) == sorted(set(came))
    intake.expire(100.0)
    highest, lowest = max(came, default=-1), min(came, default=0)
    assert intake.lost["r0"] == len([seq for seq in lost if lowest < seq < highest])
    assert intake.refused["duplicate"] == len(came) - len(set(came))


def test_a_frame_given_up_as_lost_is_refused_when_it_comes_after_all() -> None:
    """Lost is lost: the counter of lost frames never has to go back."""
    tap, intake = Tap(), Intake()
    first, late, last = (tap.health() for _ in range(3))
    _take(intake, first, last, now=0.0)
    intake.expire(60.0)
    assert intake.lost == {"r0": 1}
    assert _take(intake, late, now=60.0) == []


def test_a_huge_gap_is_counted_without_being_kept() -> None:
    """A number far ahead costs no memory."""
    tap, intake = Tap(), Intake()
    _take(intake, tap.health(), msgspec.structs.replace(tap.health(), seq=10**12))
    intake.expire(100.0)
    assert intake.lost["r0"] == 10**12 - 1
    assert max(len(source.missing) for source in intake._sources.values()) == 0


def test_routing_of_another_shape_than_announced_is_refused() -> None:
    """Layers, experts and top-k must be the announced ones; another replica may serve another model."""
    intake = Intake()
    _take(intake, Tap().announce())
    assert _take(intake, Tap(experts=16, source="b").routing("cmpl-1")) == []
    assert _take(intake, Tap(top_k=3, source="c").routing("cmpl-1")) == []
    assert intake.refused == {"wrong_shape": 2}
    assert len(_take(intake, Tap(replica="other", experts=16).routing("cmpl-1"))) == 1


def test_a_new_announcement_counts_from_then_on() -> None:
    """After a restart of vLLM with another model its routing is taken and the old one's refused."""
    intake = Intake()
    new = Tap(experts=16, source="engine-0-new")
    _take(intake, Tap().announce(), new.announce())
    assert len(_take(intake, new.routing("cmpl-1"))) == 1
    assert _take(intake, Tap(source="engine-0-old").routing("cmpl-2")) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": wire.Counts("u2", b"123")},
        {"entropy": [1.0]},
        {"margin": []},
        {"finished_at": float("nan")},
        {"sent_at": float("inf")},
        {"finished_at": -1.0},
    ],
    ids=str,
)
def test_inconsistent_routing_is_refused(wrong: dict[str, object]) -> None:
    """Arrays must have the stated shape and times must be times."""
    intake = Intake()
    assert _take(intake, msgspec.structs.replace(Tap().routing("cmpl-1"), **wrong)) == []
    assert sum(intake.refused.values()) == 1


@pytest.mark.parametrize("wrong", [{"top_k": 9}, {"top_k": 0}, {"experts": 0}, {"layer_ids": [1]}], ids=str)
def test_an_impossible_model_is_refused(wrong: dict[str, object]) -> None:
    """A model that cannot exist is not announced."""
    intake = Intake()
    assert _take(intake, Tap().announce(**wrong)) == []
    assert intake.announced == {}


def test_replicas_are_bounded() -> None:
    """Labels of metrics stay bounded however many names come."""
    intake = Intake()
    frames = [Tap(replica=f"r{number}").health() for number in range(ingest.MOST_REPLICAS + 5)]
    assert len(_take(intake, *frames)) == ingest.MOST_REPLICAS
    assert intake.refused == {"too_many_replicas": 5}


def test_sources_are_bounded() -> None:
    """A replica that restarts for ever does not fill the memory."""
    intake = Intake()
    _take(intake, *(Tap(source=f"engine-0-{boot}").health() for boot in range(ingest.MOST_SOURCES + 50)))
    assert len(intake._sources) == ingest.MOST_SOURCES


@given(st.lists(st.binary(max_size=80), max_size=30))
def test_garbage_never_raises(raws: list[bytes]) -> None:
    """Every piece is either taken or counted as refused."""
    intake = Intake()
    taken = intake.take(raws, 0.0)
    assert len(taken) + sum(intake.refused.values()) == len(raws)


@pytest.mark.parametrize("shape", [(2**30, 2**30), (600, 8), (8, 5000), (512, 4096)], ids=str)
def test_a_shape_that_no_picture_is_made_of_is_refused_and_told(shape: tuple[int, int]) -> None:
    """Neither as a model nor as routing: every layer costs a scrape time, every cell memory."""
    intake, tap = Intake(), Tap()
    layers, experts = shape
    huge = msgspec.structs.replace(tap.routing("cmpl-1"), layers=layers, experts=experts, top_k=1)
    assert _take(intake, huge, tap.announce(layers=layers, experts=experts)) == []
    assert intake.refused == {"model_too_large": 2}
    assert f"{layers} layers of {experts} experts" in intake.impossible["r0"]
    assert len(_take(intake, tap.announce())) == 1
    assert intake.impossible == {}


def test_every_large_model_in_use_fits_twice() -> None:
    """DeepSeek V3, Kimi K2, Qwen3-235B, Qwen3-Next and Qwen3.5-397B, with twice their experts."""
    for layers, experts, top_k in ((58, 256, 8), (60, 384, 8), (94, 128, 8), (48, 512, 10), (60, 512, 10)):
        assert len(_take(Intake(), Tap().announce(layers=layers, experts=2 * experts, top_k=top_k))) == 1


def test_the_pictures_of_all_replicas_together_are_bounded() -> None:
    """The one that does not fit is refused, with what to raise; those that are there may announce again."""
    intake = Intake(most_cells=50)
    first, second = Tap(replica="a"), Tap(replica="b")
    assert len(_take(intake, first.announce(), second.announce(), first.announce(), second.announce())) == 4
    assert _take(intake, Tap(replica="c").announce()) == []
    assert intake.refused == {"memory": 1}
    assert "MOE_WATCH_MEMORY_BYTES" in intake.impossible["c"]


def test_a_replica_that_is_silent_for_long_is_forgotten_and_its_name_is_free() -> None:
    """The 257th name is taken once one of the others has gone for good."""
    intake = Intake(expires_s=100.0)
    _take(intake, *(Tap(replica=f"r{number}").announce() for number in range(ingest.MOST_REPLICAS)), now=0.0)
    assert _take(intake, Tap(replica="new").health(), now=50.0) == []
    _take(intake, *(Tap(replica=f"r{number}", source="x").health() for number in range(1, 256)), now=90.0)
    assert intake.expire(99.0) == []
    assert intake.expire(101.0) == ["r0"]
    assert "r0" not in intake.announced
    assert not [key for key in intake._sources if key[0] == "r0"]
    assert len(_take(intake, Tap(replica="new", source="y").health(), now=102.0)) == 1


def test_frames_that_come_ever_earlier_are_bounded_too() -> None:
    """A sender that counts backwards in steps fills no memory; what is given up counts as lost."""
    intake, tap = Intake(), Tap()
    for step in range(200):
        _take(intake, msgspec.structs.replace(tap.health(), seq=100_000 - step * ingest._REORDER))
    (source,) = intake._sources.values()
    assert len(source.missing) <= ingest._REORDER
    assert intake.lost["r0"] + len(source.missing) == 199 * (ingest._REORDER - 1)


def test_what_a_start_takes_up_is_as_old_as_it_was_and_within_the_bound() -> None:
    """Else a replica that is gone would live a day longer with each start, and there could be any number of them."""
    intake = Intake(expires_s=100.0)
    assert intake.know(Tap(replica="old").announce(), -90.0)
    known = [intake.know(Tap(replica=f"r{number}").announce(), 0.0) for number in range(ingest.MOST_REPLICAS)]
    assert sum(known) == ingest.MOST_REPLICAS - 1
    assert intake.expire(11.0) == ["old"]
