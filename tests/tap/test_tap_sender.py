"""The sender is bounded, numbers what it sent without gaps, and never waits for the sidecar."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from moe_watch import wire
from moe_watch.settings import TapSettings
from moe_watch.tap.send.sender import Header, Sender
from moe_watch.tap.send.status import Status
from tests.support.patience import PATIENCE_S


def sender(path: Path, **settings: int) -> Sender:
    """Return a sender to a socket in ``path``."""
    return Sender(TapSettings(endpoint=f"ipc://{path}/s", replica="r", **settings), "engine", "engine-0", Status())


def event(number: int) -> Callable[[Header], wire.Event]:
    """Return the making of a frame that is told from others by ``number``."""
    return lambda header: wire.Event(**header, kind="engine_start", detail=str(number), at=0.0)


def receive(path: Path, done: Callable[[list[wire.AnyFrame]], bool]) -> list[wire.AnyFrame]:
    """Return the frames that arrive until ``done`` of them."""
    frames: list[wire.AnyFrame] = []
    deadline = time.monotonic() + PATIENCE_S
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(f"ipc://{path}/s")
        while not done(frames):
            assert time.monotonic() < deadline, f"only {len(frames)} frames came"
            if socket.poll(50):
                frames.append(wire.decode(socket.recv()))
    return frames


def details(frames: list[wire.AnyFrame]) -> list[str]:
    """Return what tells events apart."""
    return [frame.detail for frame in frames if isinstance(frame, wire.Event)]


def test_a_connection_that_is_made_at_once_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sidecar is there already and this process is slow: its frames arrive, and not only after a restart."""
    listen = zmq.Socket.get_monitor_socket

    def listen_late(*args: Any) -> Any:
        time.sleep(0.5)
        return listen(*args)

    monkeypatch.setattr(zmq.Socket, "get_monitor_socket", listen_late)
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(f"ipc://{tmp_path}/s")
        tap = sender(tmp_path)
        tap.start()
        assert socket.poll(PATIENCE_S * 1000)
        tap.close(5)


def test_frames_arrive_in_order_and_are_numbered_without_gaps(tmp_path: Path) -> None:
    """What was queued before the sidecar was there arrives after it came."""
    tap = sender(tmp_path)
    for number in range(50):
        tap.put(event(number))
    frames = receive(tmp_path, lambda frames: len(details(frames)) == 50)
    tap.close(5)
    assert details(frames) == [str(number) for number in range(50)]
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert {frame.source for frame in frames} == {tap.source}


def test_without_a_sidecar_the_oldest_frames_are_dropped_and_counted(tmp_path: Path) -> None:
    """The queue keeps the newest frames, as many as it may."""
    tap = sender(tmp_path, queue_frames=10)
    for number in range(500):
        tap.put(event(number))
    assert len(tap._queue) <= 10
    assert tap.dropped["not_connected"] >= 490
    frames = receive(tmp_path, lambda frames: "499" in details(frames))
    tap.close(5)
    assert details(frames)[-1] == "499"
    assert [frame.seq for frame in frames] == list(range(len(frames)))


def test_the_queue_is_bounded_in_bytes(tmp_path: Path) -> None:
    """Large frames fill it before there are many of them."""
    tap = sender(tmp_path, queue_bytes=10_000)
    for number in range(100):
        tap.put(event(number), 1000)
    assert len(tap._queue) <= 10
    assert tap._bytes <= 10_000
    tap.close(5)


def test_a_sidecar_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """A connected sidecar that stands still costs frames, not time: the queue overflows and says so."""
    tap = sender(tmp_path, queue_frames=100)
    text = "x" * 1000
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.setsockopt(zmq.RCVHWM, 1)
        socket.bind(f"ipc://{tmp_path}/s")
        deadline = time.monotonic() + PATIENCE_S
        while not tap.dropped["queue_full"]:
            assert time.monotonic() < deadline
            for _ in range(100):
                tap.put(lambda header: wire.Event(**header, kind="engine_start", detail=text, at=0.0))
        assert len(tap._queue) <= 100
    tap.close(5)


def test_a_new_sidecar_is_told_the_model_first(tmp_path: Path) -> None:
    """After each connection the model comes before anything else."""
    tap = sender(tmp_path)
    tap.announce(lambda header: wire.Model(**header, model="m"))
    tap.put(event(1))
    first = receive(tmp_path, lambda frames: "1" in details(frames))
    again = receive(tmp_path, lambda frames: any(isinstance(frame, wire.Model) for frame in frames))
    tap.close(5)
    assert isinstance(first[0], wire.Model)
    assert isinstance(again[0], wire.Model)


def test_a_frame_that_cannot_be_made_is_counted_and_passed_over(tmp_path: Path) -> None:
    """One bad frame costs neither its followers nor a number."""
    tap = sender(tmp_path)

    def broken(header: Header) -> wire.Event:
        raise ZeroDivisionError(str(header["seq"]))

    tap.put(event(1))
    tap.put(broken)
    tap.put(event(2))
    frames = receive(tmp_path, lambda frames: "2" in details(frames))
    tap.close(5)
    assert details(frames) == ["1", "2"]
    assert tap.dropped["error"] == 1
    assert tap.status.errors == 1


def test_frames_that_take_long_to_make_keep_no_health_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while the thread looks at everything else, and goes on with the queue at once."""
    tap, clock, sent = sender(tmp_path), 0.0, list[bytes]()

    def slow(header: Header) -> wire.Event:
        nonlocal clock
        clock += 0.4
        return wire.Event(**header, kind="engine_start", at=0.0)

    monkeypatch.setattr(tap, "stopping", True)  # no thread: the test has its turn
    monkeypatch.setattr(tap, "connected", True)
    monkeypatch.setattr("moe_watch.tap.send.sender.time.monotonic", lambda: clock)
    for _ in range(100):
        tap.put(slow)
    tap._wake.clear()
    socket = SimpleNamespace(poll=lambda *_: 1, send=lambda raw, _: sent.append(raw))
    tap._drain(socket)  # type: ignore[arg-type]
    assert len(sent) == 3
    assert tap._wake.is_set()


def test_an_endpoint_that_is_none_switches_the_tap_off(tmp_path: Path) -> None:
    """A bad address is an error of the tap, not of whoever called it."""
    tap = Sender(TapSettings(endpoint="nonsense", replica=str(tmp_path)), "engine", "engine-0", Status())
    tap.put(event(1))
    assert tap._thread is not None
    tap._thread.join(PATIENCE_S)
    assert tap.status.state == "off"


@pytest.mark.parametrize("threads", [4])
def test_many_threads_may_put(tmp_path: Path, threads: int) -> None:
    """No frame is lost between threads."""
    tap = sender(tmp_path, queue_frames=10_000)
    workers = [
        threading.Thread(target=lambda: [tap.put(event(number)) for number in range(200)]) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    frames = receive(tmp_path, lambda frames: len(details(frames)) == 200 * threads)
    tap.close(5)
    assert sum(tap.dropped.values()) == 0
    assert [frame.seq for frame in frames] == list(range(len(frames)))
