"""Carries frames from vLLM's processes to the sidecar: bounded, in a thread of its own, never waited for."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, Literal, TypedDict

import zmq

from moe_watch import ipc, wire
from moe_watch.settings import TapSettings
from moe_watch.tap.send.status import Status

log = logging.getLogger("moe_watch.tap")

Role = Literal["engine", "api"]
HEALTH_S: Final = 5.0
_MODEL_EVERY: Final = 10  # healths
_COLLECT_S: Final = 0.1  # frames of this time are sent together: waking two threads costs more than a frame does
_IDLE_S: Final = 0.25
_TURN_S: Final = 1.0  # frames that take long to make must not keep a Health waiting
_LINGER_MS: Final = 1000  # after an ordered end; a sidecar that reads nothing must not hold the thread
_IN_FLIGHT: Final = 256  # frames that ZMQ may hold; those are lost when the sidecar dies


class Header(TypedDict):
    """What the sender adds to every frame."""

    replica: str
    source: str
    seq: int
    sent_at: float


Build = Callable[[Header], wire.AnyFrame | None]  # runs in the sender's thread; None: nothing to send


class Sender:
    """A queue and a thread; ``put`` returns at once whatever the sidecar does."""

    def __init__(self, settings: TapSettings, role: Role, name: str, status: Status) -> None:
        self.settings = settings
        self.role: Role = role
        self.name = name
        self.status = status
        self.model: Build | None = None
        self.stopping = False
        self._fresh()
        os.register_at_fork(after_in_child=self._fresh)

    def _fresh(self) -> None:
        """Begin as a new source: in a new process neither the thread nor the socket of the parent is there."""
        self.source = f"{self.name}-{secrets.token_hex(4)}"
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        self.connected = False
        self._bytes = 0
        self._queue: deque[tuple[Build, int]] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, build: Build, size: int = 512) -> None:
        """Queue a frame of about ``size`` bytes; where the queue is full the oldest one is dropped and counted."""
        with self._lock:
            self._queue.append((build, size))
            self._bytes += size
            while len(self._queue) > self.settings.queue_frames or self._bytes > self.settings.queue_bytes:
                self._bytes -= self._queue.popleft()[1]
                self.dropped["queue_full" if self.connected else "not_connected"] += 1
            if self._thread is None and not self.stopping:
                self._thread = threading.Thread(target=self._run, name="moe-watch-tap", daemon=True)
                self._thread.start()
        if not self._wake.is_set():
            self._wake.set()

    def start(self) -> None:
        """Connect and say that this process is there."""
        self.put(self._health)

    def give_up(self, where: str, error: Exception) -> None:
        """Switch the tap of this process off because of ``error``, and say so once; never raise."""
        if self.status.fail(where, error):
            try:
                self.event("tap_off", self.status.reason)
            except Exception:
                log.exception("moe-watch tap could not say that it is off")

    def announce(self, model: Build) -> None:
        """Send ``model`` on every connection and with every tenth health."""
        with self._lock:
            self.model = model
            if self.connected:
                self._queue.append((model, 0))
        self.start()

    def event(
        self,
        kind: Literal["engine_start", "eplb_rebalance", "tap_off", "tap_refused", "tap_blind"],
        detail: str,
    ) -> None:
        """Queue an ``Event`` that happened now, and a ``Health`` that shows it."""
        at = time.time()
        self.put(lambda header: wire.Event(**header, kind=kind, detail=detail[:1000], at=at))
        self.put(self._health)

    def close(self, timeout_s: float) -> None:
        """Send what is queued, for ``timeout_s`` at most, and end the thread."""
        self.stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _health(self, header: Header) -> wire.Health:
        status = self.status
        return wire.Health(
            **header,
            role=self.role,
            state=status.state,
            reason=status.reason,
            sent=self.sent,
            dropped=dict(self.dropped),
            errors=status.errors,
            steps=status.steps,
            routed_tokens=status.routed_tokens,
            requests_finished=status.requests_finished,
            requests_unrouted=status.requests_unrouted,
            requests_open=status.requests_open,
        )

    def _run(self) -> None:
        try:
            with zmq.Context() as context, self._socket(context) as socket:
                # Before it connects: a handshake that is over by then would never be heard of.
                monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
                with monitor:
                    socket.connect(str(self.settings.endpoint))
                    self._serve(socket, monitor)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            self.status.fail("sender", error)

    def _socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.PUSH)
        for option, value in (
            (zmq.IMMEDIATE, 1),
            (zmq.LINGER, 0),
            (zmq.SNDHWM, _IN_FLIGHT),
            (zmq.RECONNECT_IVL, 200),
            (zmq.RECONNECT_IVL_MAX, 2000),
        ):
            socket.setsockopt(option, value)
        return socket

    def _serve(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        due, healths = time.monotonic(), 0
        while not (self.stopping and not self._queue):
            if self._wake.wait(_IDLE_S):
                self._wake.clear()
                time.sleep(_COLLECT_S)
            self._follow(monitor)
            if time.monotonic() >= due:
                due, healths = time.monotonic() + HEALTH_S, healths + 1
                self.put(self._health)
                if self.model is not None and healths % _MODEL_EVERY == 0:
                    self.put(self.model)
            self._drain(socket)
            if self.stopping and not self.connected:
                return
        socket.setsockopt(zmq.LINGER, _LINGER_MS)

    def _follow(self, monitor: zmq.Socket[bytes]) -> None:
        """Learn whether the sidecar is there; a new sidecar is told the model before anything else."""
        while monitor.poll(0):
            kind = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            self.connected = kind == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.connected:
                self._check_folder()
            if self.connected and self.model is not None:
                with self._lock:
                    self._queue.appendleft((self.model, 0))

    def _check_folder(self) -> None:
        """Raise where it may be somebody else who listens: nothing was sent yet on this connection."""
        endpoint = str(self.settings.endpoint)
        if endpoint.startswith("ipc://") and (why := ipc.planted(ipc.folder_of(endpoint))):
            raise PermissionError(f"{why}; {ipc.REMEDY}")

    def _drain(self, socket: zmq.Socket[bytes]) -> None:
        until = time.monotonic() + _TURN_S
        while self._queue and self.connected and socket.poll(0, zmq.POLLOUT):
            if time.monotonic() > until:
                self._wake.set()
                return
            with self._lock:
                build, size = self._queue.popleft()
                self._bytes -= size
            try:
                frame = build(
                    {
                        "replica": self.settings.replica,
                        "source": self.source,
                        "seq": self.sent,
                        "sent_at": time.time(),
                    }
                )
                if frame is None:
                    continue
                socket.send(wire.encode(frame), zmq.NOBLOCK)
            except zmq.Again:
                with self._lock:
                    self._queue.appendleft((build, size))
                    self._bytes += size
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                self.dropped["error"] += 1
                if self.status.spoil(f"a frame ({build.__qualname__})", error):
                    self.event("tap_off", self.status.reason)
                continue
            self.sent += 1
            self.status.recover(f"a frame ({build.__qualname__})")
