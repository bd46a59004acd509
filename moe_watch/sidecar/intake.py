"""Takes frames off the socket and decides which of them count.

A frame is refused, with a reason that is counted, when it is malformed, too large, of an unknown version, a duplicate,
or of another shape than its replica's model; a frame that never came leaves a gap in the numbers of its source.
"""

from __future__ import annotations

import os
import socket
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import structlog
import zmq

from moe_watch import ipc, wire
from moe_watch.servers.urls import is_loopback

Refusal = Literal[wire.Reason, "duplicate", "late", "unannounced", "too_many_replicas"]
MOST_REPLICAS: Final = 256
MOST_SOURCES: Final = 1024
_REORDER: Final = 128  # frames of a source that may still come late
_GAP_S: Final = 10.0  # after this long a missing frame is lost
HIGH_WATER_FRAMES: Final = 64  # for each connection, whose queue libzmq bounds in frames alone
_HANDSHAKE_MS: Final = 5000  # after which a connection that is no tap's is ended
_LONGEST_IPC_PATH: Final = 107

_log = structlog.get_logger()


class EndpointError(RuntimeError):
    """The socket cannot be bound; the message says why and what to do."""


def bind(context: zmq.Context[zmq.Socket[bytes]], endpoint: str, *, allow_remote: bool = False) -> zmq.Socket[bytes]:
    """Return a PULL socket bound at ``endpoint``, private to this user; raise ``EndpointError``.

    ``ipc://`` gets a directory of mode 0700 (when it makes it; one that another user may have made is refused) and a
    socket of mode 0600. ``tcp://`` has no access
    control of its own, so an address beyond loopback needs ``allow_remote``.
    """
    parts = urlsplit(endpoint)
    if parts.scheme == "ipc":
        _prepare_ipc(Path(endpoint.removeprefix("ipc://")))
    elif parts.scheme != "tcp":
        raise EndpointError(f"endpoint {endpoint!r}: use ipc:///path/to/socket or tcp://127.0.0.1:port")
    elif not allow_remote and not is_loopback(parts.hostname or ""):
        raise EndpointError(
            f"endpoint {endpoint!r} takes frames from other hosts without any check: bind 127.0.0.1, or set "
            "MOE_WATCH_ALLOW_REMOTE_TAPS=true where the network itself is closed"
        )
    made = context.socket(zmq.PULL)
    made.setsockopt(zmq.RCVHWM, HIGH_WATER_FRAMES)
    made.setsockopt(zmq.MAXMSGSIZE, wire.MAX_FRAME_BYTES * 5 // 4)  # up to here counted as too large, beyond cut off
    made.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
    made.setsockopt(zmq.LINGER, 0)
    try:
        _bind_privately(made, endpoint)
    except zmq.ZMQError as error:
        made.close()
        raise EndpointError(f"endpoint {endpoint!r} cannot be bound: {error.strerror}") from error
    return made


def bind_again(unbound: zmq.Socket[bytes], endpoint: str) -> bool:
    """Bind a socket where it was bound before; say whether that could be done."""
    try:
        _bind_privately(unbound, endpoint)
    except zmq.ZMQError:
        return False
    return True


def _bind_privately(socket: zmq.Socket[bytes], endpoint: str) -> None:
    before = os.umask(0o177)
    try:
        socket.bind(endpoint)
    finally:
        os.umask(before)


def _prepare_ipc(path: Path) -> None:
    """Make the directory; refuse a path that another process listens on, which ZMQ would silently take over."""
    if len(os.fsencode(path)) > _LONGEST_IPC_PATH:
        raise EndpointError(f"endpoint path {path} is longer than the {_LONGEST_IPC_PATH} bytes of a unix socket")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EndpointError(f"cannot make {path.parent}: {error.strerror}") from error
    if why := ipc.planted(path.absolute().parent):
        raise EndpointError(f"endpoint {path}: {why}; {ipc.REMEDY}")
    if why := ipc.shared(path.absolute().parent):
        _log.warning("the tap's socket lies where others can put theirs", why=why)
    if path.exists() and not path.is_socket():
        raise EndpointError(f"{path} exists and is no socket: move it away or choose another endpoint")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return  # nobody listens; a stale socket is replaced
    raise EndpointError(
        f"endpoint {path} is taken: another moe-watch listens there; stop it or choose another endpoint"
    )


@dataclass
class _Source:
    """Which frames of one source came: all below ``next`` save the ``missing`` ones (number -> when noticed)."""

    first: int
    next: int
    missing: OrderedDict[int, float] = field(default_factory=OrderedDict)

    def take(self, seq: int, now: float) -> tuple[bool, int]:
        """Return whether ``seq`` is new, and how many frames are given up as lost."""
        if seq >= self.next:
            given_up = max(0, seq - self.next - _REORDER)
            self.missing.update(dict.fromkeys(range(self.next + given_up, seq), now))
            self.next = seq + 1
            return True, given_up + self._trim()
        if seq in self.missing:
            del self.missing[seq]
            return True, 0
        if self.first - _REORDER <= seq < self.first:  # sent before, came after, the first that was seen
            self.missing.update(dict.fromkeys(range(seq + 1, self.first), now))
            self.first = seq
            return True, self._trim()
        return False, 0

    def _trim(self) -> int:
        """Return how many frames are given up, since too many are missing."""
        given_up = 0
        while len(self.missing) > _REORDER:
            self.missing.popitem(last=False)
            given_up += 1
        return given_up

    def expire(self, before: float) -> int:
        """Return how many frames have been missing since before ``before``, and forget them."""
        lost = 0
        while self.missing and next(iter(self.missing.values())) < before:
            self.missing.popitem(last=False)
            lost += 1
        return lost


@dataclass
class Intake:
    """Judges raw frames one by one; counts are since the start and grow only."""

    received: Counter[str] = field(default_factory=Counter)  # by type of frame
    refused: Counter[str] = field(default_factory=Counter)  # by reason
    lost: Counter[str] = field(default_factory=Counter)  # by replica
    announced: dict[str, wire.Model] = field(default_factory=dict)  # by replica, the latest
    impossible: dict[str, str] = field(default_factory=dict)  # by replica, why its model is not watched
    most_cells: int = 1 << 20  # layers x experts of all replicas together
    expires_s: float = 86_400.0  # how long a replica may be silent
    _sources: OrderedDict[tuple[str, str], _Source] = field(default_factory=OrderedDict)
    _replicas: dict[str, float] = field(default_factory=dict)  # when each was heard last

    def take(self, raws: Iterable[bytes], now: float) -> list[wire.AnyFrame]:
        """Return the frames in ``raws`` that count, in their order; ``now`` is any clock in seconds."""
        taken: list[wire.AnyFrame] = []
        for raw in raws:
            try:
                frame = wire.decode(raw)
                refusal = self._admit(frame, now)
                if refusal is None:
                    self._check(frame)
            except wire.WireError as error:
                refusal = error.reason
            if refusal is not None:
                self.refused[refusal] += 1
                continue
            taken.append(frame)
        for kind, number in Counter(map(type, taken)).items():
            self.received[kind.__name__.lower()] += number
        return taken

    def expire(self, now: float) -> list[str]:
        """Count as lost what has been missing for long; forget and return the replicas that are gone for good."""
        for (replica, _), source in self._sources.items():
            if source.missing and (lost := source.expire(now - _GAP_S)):
                self.lost[replica] += lost
        gone = [replica for replica, heard in self._replicas.items() if now - heard > self.expires_s]
        for replica in gone:
            self._forget(replica)
        return gone

    def _admit(self, frame: wire.AnyFrame, now: float) -> Refusal | None:
        """Return why ``frame`` does not count, or None; remember its number."""
        if frame.replica not in self._replicas and len(self._replicas) >= MOST_REPLICAS:
            return "too_many_replicas"
        self._replicas[frame.replica] = now
        key = (frame.replica, frame.source)
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source(frame.seq, frame.seq)
            if len(self._sources) > MOST_SOURCES:
                self._sources.popitem(last=False)
        new, lost = source.take(frame.seq, now)
        if lost:
            self.lost[frame.replica] += lost
        return None if new else "duplicate"

    def know(self, model: wire.Model, heard_at: float) -> bool:
        """Take up what a replica announced before the sidecar started; say whether it can be watched.

        ``heard_at`` is on the clock of ``take``.
        """
        if model.replica not in self._replicas and len(self._replicas) >= MOST_REPLICAS:
            return False
        try:
            self._check_model(model)
        except wire.WireError:
            return False
        self._replicas[model.replica] = heard_at
        return True

    def _forget(self, replica: str) -> None:
        """Free the name of a replica, and what is known of it."""
        del self._replicas[replica]
        self.announced.pop(replica, None)
        self.impossible.pop(replica, None)
        self.lost.pop(replica, None)
        for key in [key for key in self._sources if key[0] == replica]:
            del self._sources[key]

    def _check(self, frame: wire.AnyFrame) -> None:
        """Raise ``WireError`` for a model that cannot be watched, and for routing of another shape than announced."""
        if isinstance(frame, wire.Model):
            self._check_model(frame)
        elif isinstance(frame, wire.Routing):
            self._check_routing(frame)

    def _check_model(self, frame: wire.Model) -> None:
        try:
            _check_shape(frame)
            self._check_room(frame)
        except wire.WireError as error:
            if self.impossible.get(frame.replica) != str(error):
                _log.error("a model is not watched", model=frame.model, replica=frame.replica, why=str(error))
            self.impossible[frame.replica] = str(error)
            raise
        self.impossible.pop(frame.replica, None)
        self.announced[frame.replica] = frame

    def _check_room(self, frame: wire.Model) -> None:
        others = sum(one.layers * one.experts for name, one in self.announced.items() if name != frame.replica)
        if others + frame.layers * frame.experts > self.most_cells:
            raise wire.WireError(
                "memory",
                f"layers x experts of all replicas would be more than {self.most_cells}: raise MOE_WATCH_MEMORY_BYTES",
            )

    def _check_routing(self, frame: wire.Routing) -> None:
        model = self.announced.get(frame.replica)
        shape = (frame.layers, frame.experts, frame.top_k)
        if model is not None and shape != (model.layers, model.experts, model.top_k):
            raise wire.WireError("wrong_shape", f"{shape}, announced {(model.layers, model.experts, model.top_k)}")
        _check_size(frame.layers, frame.experts)
        wire.check_counts(frame.prompt, frame.layers, frame.experts)
        wire.check_counts(frame.decode, frame.layers, frame.experts)
        for values in (frame.entropy, frame.margin):
            if values is not None and len(values) != frame.layers:
                raise wire.WireError("wrong_shape", f"confidence of {len(values)} layers, not {frame.layers}")


def _check_shape(frame: wire.Model) -> None:
    shape = (frame.layers, frame.experts, frame.top_k)
    dense = shape[0] == 0
    if not dense and not (min(shape) >= 1 and frame.top_k <= frame.experts and frame.ranks <= frame.experts):
        raise wire.WireError("wrong_shape", f"a model of {shape} (layers, experts, top-k) on {frame.ranks} ranks")
    _check_size(frame.layers, frame.experts)
    if frame.layer_ids and len(frame.layer_ids) != frame.layers:
        raise wire.WireError("wrong_shape", f"{len(frame.layer_ids)} layer ids for {frame.layers} layers")


def _check_size(layers: int, experts: int) -> None:
    """Raise ``WireError`` for a shape that no picture is made of: each cell and each layer costs memory and time."""
    if layers > wire.MOST_LAYERS or experts > wire.MOST_EXPERTS or layers * experts > wire.MOST_CELLS:
        raise wire.WireError(
            "model_too_large",
            f"{layers} layers of {experts} experts; at most {wire.MOST_LAYERS}, {wire.MOST_EXPERTS} and "
            f"{wire.MOST_CELLS} experts in all layers",
        )
