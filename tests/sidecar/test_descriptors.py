"""File descriptors: whoever connects and says nothing costs others nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import zmq
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from demo.servers import Server, free_port, start
from moe_watch import wire
from moe_watch.metrics.board import Board
from moe_watch.settings import HttpSettings
from moe_watch.sidecar import descriptors, serve
from moe_watch.sidecar.callers import _ANSWER_S, _ASK_S, Callers, Door
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S

_FEW = 256  # descriptors that the sidecar may have
_MANY = 400  # connections


class Limited:
    """A running ``moe-watch serve`` that may have few descriptors."""

    def __init__(self, work: Path, endpoint: str) -> None:
        self.endpoint = endpoint
        self.port = free_port()
        self.server = self._start(work)
        self.server.wait_ready("/readyz", PATIENCE_S)
        self.taps = zmq.Context.instance().socket(zmq.PUSH)
        self.taps.setsockopt(zmq.LINGER, 0)
        self.taps.connect(endpoint)

    def _start(self, work: Path) -> Server:
        env = {
            "MOE_WATCH_ENDPOINT": self.endpoint,
            "MOE_WATCH_STORE__URL": f"sqlite:///{work}/store.db",
            "MOE_WATCH_HTTP__PORT": str(self.port),
            "OMP_NUM_THREADS": "1",
        }
        # The soft limit is lower still: the sidecar raises it by itself.
        command = ["sh", "-c", f'ulimit -Sn {_FEW // 2} && ulimit -Hn {_FEW} && exec "$@"', "sh"]
        command += [sys.executable, "-m", "moe_watch.cli.main", "serve"]
        return start("limited", command, url=f"http://127.0.0.1:{self.port}", work=work, env=env)

    def send(self, *frames: wire.AnyFrame) -> None:
        for frame in frames:
            self.taps.send(wire.encode(frame))

    def wait_for_requests(self, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, self.server.log_tail()
            with contextlib.suppress(httpx.TransportError):
                replicas = httpx.get(f"{self.server.url}/api/v1/status", timeout=30).json()["replicas"]
                if replicas and replicas[0]["requests"] == number:
                    return
            time.sleep(0.1)

    def close(self) -> None:
        self.taps.close()
        self.server.stop()


@pytest.fixture(params=["ipc", "tcp"])
def limited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Limited]:
    port = free_port()
    made = Limited(tmp_path, f"ipc://{tmp_path}/tap.sock" if request.param == "ipc" else f"tcp://127.0.0.1:{port}")
    yield made
    made.close()


def _connect(address: tuple[str, int] | str, number: int) -> list[socket.socket]:
    """Return up to ``number`` connections that say nothing."""
    made = []
    for _ in range(number):
        one = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        one.settimeout(2)
        made.append(one)
        try:
            one.connect(address)
        except OSError:
            break  # the door is closed
    return made


@pytest.mark.parametrize("limited", ["ipc"], indirect=True)  # where libzmq ends the process without descriptors
def test_silent_connections_to_the_port_keep_nobody_out(limited: Limited) -> None:
    """Probes are answered while they are there, frames are taken, and a tap can still connect.

    The soft limit is raised to the hard one: a service manager's default of 1,024 is no bound.
    """
    limits = Path(f"/proc/{limited.server.process.pid}/limits").read_text().partition("Max open files")[2]
    assert limits.split()[:2] == [str(_FEW), str(_FEW)]
    tap = Tap()
    silent = _connect(("127.0.0.1", limited.port), _MANY)
    for path in ("/healthz", "/readyz", "/metrics"):
        assert httpx.get(f"{limited.server.url}{path}", timeout=PATIENCE_S).status_code == 200
    limited.send(tap.announce(), *tap.whole())
    limited.wait_for_requests(1)
    late = zmq.Context.instance().socket(zmq.PUSH)
    with late:
        late.connect(limited.endpoint)
        late.send(wire.encode(tap.health()))
        limited.send(*tap.whole())
        limited.wait_for_requests(2)
    for one in silent:
        one.close()
    assert limited.server.process.poll() is None


def test_silent_connections_to_the_endpoint_of_the_taps_harm_nothing(limited: Limited) -> None:
    """They end by themselves; the taps that are there go on meanwhile, and new ones connect afterwards."""
    tap = Tap()
    limited.send(tap.announce(), *tap.whole())
    limited.wait_for_requests(1)
    path = limited.endpoint.removeprefix("ipc://")
    is_ipc = path.startswith("/")  # where libzmq ends the process without descriptors: only some may come at once
    where = path if is_ipc else ("127.0.0.1", int(limited.endpoint.rsplit(":", 1)[1]))
    silent = _connect(where, 150 if is_ipc else _MANY)
    limited.send(*tap.whole())
    limited.wait_for_requests(2)
    for one in silent:
        one.close()
    late = zmq.Context.instance().socket(zmq.PUSH)
    late.setsockopt(zmq.LINGER, 0)
    with late:
        late.connect(limited.endpoint)
        for frame in Tap(source="engine-late", replica="r0").whole("cmpl-late")[:1]:
            late.send(wire.encode(frame))
        limited.wait_for_requests(3)
    assert limited.server.process.poll() is None


class _Pair:
    """A door and what knocks at it, without a server behind."""

    def __init__(self, most: int) -> None:
        self.now = 0.0
        self.callers = Callers(most, lambda: self.now)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.door = Door(self.listening, self.callers)

    def knock(self) -> tuple[socket.socket, socket.socket]:
        outside = socket.create_connection(self.listening.getsockname())
        while True:
            with contextlib.suppress(BlockingIOError):
                return outside, self.door.accept()[0]


def _is_over(outside: socket.socket) -> bool:
    outside.settimeout(0.0)
    try:
        return outside.recv(1) == b""
    except BlockingIOError:
        return False


def test_the_connection_that_waited_longest_makes_room() -> None:
    """One that has asked waits for us, and is ended last."""
    pair = _Pair(2)
    first, inside = pair.knock()
    pair.callers.turn(inside.fileno(), asked=True)
    pair.now = 1.0
    second, silent = pair.knock()
    third = socket.create_connection(pair.listening.getsockname())
    with pytest.raises(BlockingIOError):
        pair.door.accept()
    assert [_is_over(one) for one in (first, second)] == [False, True]
    silent.close()
    inside, _ = pair.door.accept()
    assert len(pair.callers) == 2
    for one in (first, second, third, inside):
        one.close()


@pytest.mark.parametrize(("asked", "bound_s"), [(False, _ASK_S), (True, _ANSWER_S)])
def test_a_client_that_keeps_us_waiting_is_ended(asked: bool, bound_s: float) -> None:  # noqa: FBT001
    """However little it sends meanwhile: only a whole head, or an answer, begins the time anew."""
    pair = _Pair(5)
    outside, inside = pair.knock()
    pair.callers.turn(inside.fileno(), asked=asked)
    pair.now = bound_s - 0.1
    pair.callers.end_overdue()
    assert not _is_over(outside)
    pair.now = bound_s + 0.1
    pair.callers.end_overdue()
    assert _is_over(outside)


def test_a_client_that_reset_its_connection_does_not_end_the_guard() -> None:
    """Before it was ever spoken to, as in a handshake of TLS: the next one that is overdue is still ended."""
    pair = _Pair(5)
    outside, reset = pair.knock()
    outside.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    outside.close()
    silent, inside = pair.knock()
    pair.now = _ASK_S + 1
    pair.callers.end_overdue()
    assert _is_over(silent)
    for one in (silent, reset, inside):
        one.close()


def _alive() -> Starlette:
    async def healthz(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    return Starlette(routes=[Route("/healthz", healthz)])


def test_a_head_that_trickles_is_not_waited_for_and_a_whole_one_is_answered() -> None:
    """With the real server: what counts is when the head began to be awaited."""

    async def tried() -> tuple[bool, bytes, bytes]:
        now = 0.0
        callers = Callers(5, lambda: now)
        listening = socket.create_server(("127.0.0.1", 0))
        async with serve._http_server(_alive(), listening, HttpSettings(), asyncio.Event(), Board(), callers=callers):
            answers, asked = await asyncio.open_connection(*listening.getsockname())
            ended, slow = await asyncio.open_connection(*listening.getsockname())
            for piece in (b"GET /healthz ", b"HTTP/1.1\r\n", b"Host: x\r\n"):
                slow.write(piece)
                await slow.drain()
            now = _ASK_S - 1
            asked.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            first = await answers.readuntil(b"ok\n")
            now = _ASK_S + 1
            slow.write(b"More: x\r\n")
            callers.end_overdue()
            try:
                is_over = await ended.read() == b""
            except ConnectionResetError:
                is_over = True
            asked.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            return is_over, first, await answers.readuntil(b"ok\n")

    is_over, *answers = asyncio.run(tried())
    assert is_over
    assert [answer.split()[1] for answer in answers] == [b"200", b"200"]


def test_the_door_opens_again_whatever_happened_while_it_was_shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no descriptor left nobody can count them; a guard that is started again finds the door shut."""
    monkeypatch.setattr(descriptors, "_LOOK_S", 0.0)
    counts = iter([OSError("too many open files"), OSError("too many open files"), 3])
    doings: list[str] = []

    class Shut:
        def getsockopt_string(self, _: int) -> str:
            return "ipc:///tap.sock"

        def unbind(self, _: str) -> None:
            doings.append("unbind")
            raise zmq.ZMQError(zmq.EINVAL)

    def listdir(_: object) -> list[str]:
        found = next(counts)
        if isinstance(found, OSError):
            raise found
        return ["0"] * found

    def bind_again(_: object, endpoint: str) -> bool:
        doings.append(f"bind {endpoint}")
        raise KeyboardInterrupt

    monkeypatch.setattr(descriptors.os, "listdir", listdir)
    monkeypatch.setattr(descriptors, "bind_again", bind_again)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(descriptors.guard(Shut()))  # type: ignore[arg-type]
    assert doings == ["unbind", "bind ipc:///tap.sock"]
