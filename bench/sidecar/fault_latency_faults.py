"""The faults that ``fault_latency.py`` inflicts on a running deployment, each undone at the end of its ``with``.

A fault is there once its ``with`` is entered; it yields a function that returns how much of it was seen since, 0 where
it was not in effect.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from bench.sidecar.fault_latency_stage import Stage, start_stranger

Seen = Callable[[], int]
_STRANGER = """
import itertools, sys, zmq
from tests.test_fuzz_frames import malformed
socket = zmq.Context().socket(zmq.PUSH)
socket.connect(sys.argv[1])
for raw in itertools.cycle(list(malformed(5000))):
    socket.send(raw)
"""


@dataclass(frozen=True)
class Fault:
    """How to inflict a fault; ``cut``: the tap cannot send, so its queue is filled before anything is timed."""

    said: str
    inflict: Callable[[Stage], AbstractContextManager[Seen]]
    store: str = "sqlite"
    cut: bool = False


@contextmanager
def nothing(_: Stage) -> Iterator[Seen]:
    """Leave everything well."""
    yield lambda: 1


@contextmanager
def killed(stage: Stage) -> Iterator[Seen]:
    """Kill the sidecar."""
    process = stage.sidecar.process
    process.kill()
    process.wait(10)
    yield lambda: int(process.poll() == -signal.SIGKILL)


@contextmanager
def stopped(stage: Stage) -> Iterator[Seen]:
    """Let the sidecar stand still."""
    pid = stage.sidecar.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield lambda: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def absent(stage: Stage) -> Iterator[Seen]:
    """Have nobody at the endpoint."""
    stage.stop_sidecar()
    yield lambda: int(not _is_heard(stage))


@contextmanager
def taken(stage: Stage) -> Iterator[Seen]:
    """Have a program at the endpoint that lets taps connect and says nothing, ever."""
    stage.stop_sidecar()
    path = _path(stage)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        yield lambda: int(_is_heard(stage))
    path.unlink()


@contextmanager
def slow(stage: Stage) -> Iterator[Seen]:
    """Have a sidecar at the endpoint that is so slow as to take one frame."""
    stage.stop_sidecar()
    with zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.setsockopt(zmq.RCVHWM, 1)
        pull.setsockopt(zmq.RCVBUF, 4096)
        pull.bind(stage.endpoint)
        frames = 1 if pull.poll(30_000) else 0
        pull.recv(zmq.NOBLOCK)
        yield lambda: frames


@contextmanager
def malformed(stage: Stage) -> Iterator[Seen]:
    """Have a stranger send malformed frames to the sidecar, as fast as it takes them."""
    stranger = start_stranger(_STRANGER, stage.endpoint)
    try:
        before = _refused(stage.status())
        stage.until(lambda status: _refused(status) > before, "malformed frames are refused")
        before = _refused(stage.status())
        yield lambda: _refused(stage.status()) - before
    finally:
        stranger.kill()
        stranger.wait(10)


@contextmanager
def postgres_stopped(stage: Stage) -> Iterator[Seen]:
    """Stop Postgres: what comes waits in the spool."""
    if stage.postgres is None:
        raise RuntimeError("there is no Postgres to stop")
    stage.postgres.stop()
    try:
        stage.until(lambda status: _spooled(status) > 0, "the sidecar spools")
        yield lambda: _spooled(stage.status())
    finally:
        stage.postgres.start()


@contextmanager
def locked(stage: Stage) -> Iterator[Seen]:
    """Hold SQLite's lock: what comes waits in the spool."""
    path = stage.url_of("sqlite").removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        stage.until(lambda status: _spooled(status) > 0, "the sidecar spools")
        yield lambda: _spooled(stage.status())


@contextmanager
def full(stage: Stage) -> Iterator[Seen]:
    """Let no file of the sidecar grow, as on a full disk: neither store nor spool nor log."""
    pid, counter = stage.sidecar.process.pid, "moe_watch_spool_dropped_total"
    before = stage.counter(counter)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    try:
        stage.until(lambda _: stage.counter(counter) > before, "requests are dropped for want of room")
        before = stage.counter(counter)
        yield lambda: int(stage.counter(counter) - before)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextmanager
def restarting(stage: Stage) -> Iterator[Seen]:
    """Kill the sidecar as soon as it is up, start it again, and so on."""
    kills, leave = 0, threading.Event()

    def go_round() -> None:
        nonlocal kills
        while not leave.is_set():
            stage.sidecar.process.kill()
            stage.sidecar.process.wait(10)
            kills += 1
            stage.start_sidecar().wait_ready("/readyz", 60)

    thread = threading.Thread(target=go_round, name="restarting")
    thread.start()
    try:
        yield lambda: kills - 1  # without the first: that it comes again and again is the fault
    finally:
        leave.set()
        thread.join()


FAULTS = {
    "none": Fault("none: healthy against healthy, the noise", nothing),
    "killed": Fault("sidecar killed (SIGKILL)", killed, cut=True),
    "stopped": Fault("sidecar stands still (SIGSTOP)", stopped, cut=True),
    "absent": Fault("no sidecar", absent, cut=True),
    "taken": Fault("endpoint taken by a program that never answers", taken, cut=True),
    "slow": Fault("sidecar so slow as to take one frame", slow, cut=True),
    "restarting": Fault("sidecar killed and started again, in a loop", restarting),
    "locked": Fault("SQLite locked by another program: spooling", locked),
    "full": Fault("disk full for store and spool", full),
    "malformed": Fault("malformed frames from a stranger, as fast as they are taken", malformed, store="stranger"),
    "postgres": Fault("Postgres stopped: spooling", postgres_stopped, store="postgres"),
}


def _path(stage: Stage) -> Path:
    return Path(stage.endpoint.removeprefix("ipc://"))


def _is_heard(stage: Stage) -> bool:
    """Say whether somebody listens at the endpoint."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(_path(stage))) == 0


def _refused(status: dict[str, Any]) -> int:
    return sum(status["frames_refused"].values())


def _spooled(status: dict[str, Any]) -> int:
    """Return the bytes that wait in the spool while the store is away."""
    return 0 if status["store"]["up"] else int(status["store"]["spool_bytes"])
