"""A real vLLM on the CPU with the tap on, and a stand-in for the sidecar that only collects frames."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import zmq

from demo import servers
from moe_watch import wire
from moe_watch.servers.stream import event
from tests.support.patience import PATIENCE_S

MIDDLEWARE = ("--middleware", "moe_watch.tap.middleware.Middleware")
READY_S = 400
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(Path(__file__).parents[3])}  # for ``VllmServer.rpc``
AnyFrame = TypeVar("AnyFrame", bound=wire.Frame)


class VllmServer:
    """One running server; ``served_name`` is ``tiny``."""

    served_name = "tiny"

    def __init__(self, server: servers.Server) -> None:
        self.server = server
        self.url, self.log = server.url, server.log
        self.pid = server.process.pid

    @classmethod
    def start(
        cls,
        model: Path,
        work: Path,
        *,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        name: str = "vllm",
    ) -> VllmServer:
        """Start a server of ``model`` that logs into ``work``, and return once it answers."""
        env = {"OMP_NUM_THREADS": "1", **DEVELOPMENT, **(env or {})}
        started = cls(servers.start_vllm(name, model, work=work, served_name=cls.served_name, args=args, env=env))
        try:
            started.server.wait_ready("/health", READY_S)
        except BaseException:
            started.stop()
            raise
        return started

    def stop(self) -> None:
        """End it and its engine."""
        self.server.stop()

    def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> httpx.Response:
        """Return the answer to a request with the served model's name filled in."""
        with_model = {"model": self.served_name, **body}
        return httpx.post(self.url + path, json=with_model, headers=dict(headers or {}), timeout=120)

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of a streamed greedy completion; closing it closes the connection."""
        asked = {"model": self.served_name, "temperature": 0, "stream": True, **body}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=asked, timeout=120) as reply:
            reply.raise_for_status()
            for line in reply.iter_lines():
                if (found := event(line.encode())) is not None:
                    yield found

    def rpc(self, method: str, *args: str) -> Any:
        """Return what the worker's ``method`` returns (vLLM in development mode)."""
        reply = httpx.post(f"{self.url}/collective_rpc", json={"method": method, "args": args}, timeout=120)
        reply.raise_for_status()
        return reply.json()["results"][0]

    def chat(self, text: str, headers: Mapping[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """Return the completion of one user message, greedy unless told otherwise."""
        messages = [{"role": "user", "content": text}]
        reply = self.post("/v1/chat/completions", {"messages": messages, "temperature": 0, **body}, headers)
        reply.raise_for_status()
        return dict(reply.json())

    def complete(self, prompt: Any, headers: Mapping[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """Return the completion of a text or of token ids, greedy unless told otherwise."""
        reply = self.post("/v1/completions", {"prompt": prompt, "temperature": 0, **body}, headers)
        reply.raise_for_status()
        return dict(reply.json())


@dataclass
class Collector:
    """Frames in their order of arrival at ``endpoint``."""

    endpoint: str
    frames: list[wire.AnyFrame]
    _leave: threading.Event = field(default_factory=threading.Event)
    _gone: threading.Event = field(default_factory=threading.Event)

    def of(self, kind: type[AnyFrame]) -> list[AnyFrame]:
        """Return the frames of one kind."""
        return [frame for frame in self.frames if isinstance(frame, kind)]

    def by_id(self, kind: type[AnyFrame], request_id: str) -> list[AnyFrame]:
        """Return the frames of one kind that belong to a request."""
        return [frame for frame in self.of(kind) if getattr(frame, "request_id", None) == request_id]

    def health(self, role: str) -> wire.Health:
        """Return what a process said last of itself."""
        return [health for health in self.of(wire.Health) if health.role == role][-1]

    def engine_health(self) -> wire.Health:
        """Return what the engine's process said last of itself."""
        return self.health("engine")

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Leave the endpoint to others for a while."""
        self._leave.set()
        assert self._gone.wait(PATIENCE_S)
        try:
            yield
        finally:
            self._leave.clear()

    def collect(self, stop: threading.Event) -> None:
        """Bind the endpoint and collect until ``stop``, save while away."""
        while not stop.is_set():
            if self._leave.wait(0.02):
                self._gone.set()
                continue
            with zmq.Context() as context, context.socket(zmq.PULL) as socket:
                socket.bind(self.endpoint)
                self._gone.clear()
                while not (stop.is_set() or self._leave.is_set()):
                    while socket.poll(50):
                        self.frames.append(wire.decode(socket.recv()))

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Return once ``done()``; fail with ``what`` was awaited when it takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {PATIENCE_S:.0f} s; {len(self.frames)} frames came")
            time.sleep(0.02)

    def routing(self, request_id: str, choices: int = 1) -> list[wire.Routing]:
        """Wait for the routing of every choice of a request and return it by choice."""
        self.wait(lambda: len(self.by_id(wire.Routing, request_id)) >= choices, f"routing of {request_id}")
        return sorted(self.by_id(wire.Routing, request_id), key=lambda frame: frame.choice)


@contextlib.contextmanager
def collecting(endpoint: str) -> Iterator[Collector]:
    """Bind ``endpoint`` and collect in a thread what the taps send."""
    collector, stop = Collector(endpoint, []), threading.Event()
    thread = threading.Thread(target=collector.collect, args=(stop,), daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def tapped(model: Path, work: Path, *args: str, env: Mapping[str, str] | None = None) -> Iterator[Tapped]:
    """Run a server of ``model`` with tap, middleware and a collector."""
    work.mkdir(parents=True, exist_ok=True)
    with collecting(f"ipc://{work}/tap.sock") as collector:
        settings = {"MOE_WATCH_ENDPOINT": collector.endpoint, "MOE_WATCH_REPLICA": "replica-1", **(env or {})}
        server = VllmServer.start(model, work, env=settings, args=[*MIDDLEWARE, *args])
        try:
            yield Tapped(server, collector)
        finally:
            server.stop()


@dataclass(frozen=True)
class Tapped:
    """A server and what its taps send."""

    server: VllmServer
    collector: Collector
