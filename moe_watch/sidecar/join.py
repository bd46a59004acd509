"""Puts what the tap's processes say of one request together: routing, latency and the HTTP layer's view.

A state machine without a clock: the time is an argument. One request may have several choices (``n`` > 1), each with
routing and latency of its own, and one ``Request`` frame that serves them all. vLLM gives the choices' latencies one
and the same id, so they are told apart by their number of tokens.

A client chooses ids, so a part that a request has already is another request's, which gets an id of its own: the tap
makes ids unique where it sees them repeat, but not over processes and restarts.
"""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from moe_watch import wire
from moe_watch.domain import memory, request_ids
from moe_watch.domain.request import Joined

Part = Literal["routing", "latency", "request"]
_PARTS: Final[tuple[Part, ...]] = ("routing", "latency", "request")
_FRAMES: Final = (wire.Routing, wire.Latency, wire.Request)
_ALL: Final = frozenset(_PARTS)
_MOST_DONE: Final = 50_000  # requests remembered to recognise what comes twice or late
_MOST_CHOICES: Final = 1024  # a completion may have a list of prompts, each with several choices

Key = tuple[str, str]  # replica, request id


@dataclass(slots=True)
class _Group:
    """What has come of one request; ``sent_as`` is the key that its frames have."""

    sent_as: Key
    since: float
    routings: dict[int, wire.Routing] = field(default_factory=dict)
    latencies: list[wire.Latency] = field(default_factory=list)
    request: wire.Request | None = None
    size: int = 0  # bytes of memory

    @property
    def choices(self) -> int:
        """Return how many choices there will be, as far as is known: what came counts besides what was said."""
        said = min(self.request.choices, _MOST_CHOICES) if self.request is not None else 1
        return max(said, len(self.routings), len(self.latencies))


@dataclass(frozen=True, slots=True)
class _Had:
    """What the last request of a key had when it went on."""

    routings: tuple[int, ...]  # choices
    latencies: int
    request: bool
    choices: int
    complete: bool

    def lacked(self, frame: wire.Routing | wire.Latency | wire.Request) -> bool:
        """Say whether ``frame`` is what it went on without."""
        if isinstance(frame, wire.Request):
            return not self.request
        there = frame.choice in self.routings if isinstance(frame, wire.Routing) else self.latencies >= self.choices
        return not self.complete and not there


class Join:
    """Requests of which some part is still awaited, oldest first."""

    def __init__(self, timeout_s: float, most_open: int = 20_000, most_bytes: int = 1 << 26) -> None:
        self.timeout_s = timeout_s
        self.most_open, self.most_bytes = most_open, most_bytes
        self.bytes = 0
        self.refused: Counter[str] = Counter()  # duplicate, late
        self._open: OrderedDict[Key, _Group] = OrderedDict()
        self._named: defaultdict[Key, list[Key]] = defaultdict(list)  # key of frames -> open requests, oldest first
        self._done: OrderedDict[int, _Had] = OrderedDict()  # by digest of the key of frames: an id may be long
        self._seen: defaultdict[str, dict[Part, float]] = defaultdict(dict)  # replica -> part -> first seen

    def __len__(self) -> int:
        """Return the number of requests that wait."""
        return len(self._open)

    def add(self, frames: Iterable[wire.AnyFrame], now: float) -> list[Joined]:
        """Take in ``frames`` (others than parts of requests are passed over); return what became complete."""
        out: list[Joined] = []
        for frame in frames:
            if isinstance(frame, _FRAMES):
                out += self._add(frame, now)
                while len(self._open) > self.most_open or self.bytes > self.most_bytes:
                    out += self._close(next(iter(self._open)))
        return out

    def forget(self, replica: str) -> None:
        """Forget which parts a replica sends; what waits of it comes out as usual."""
        if not any(key[0] == replica for key in self._open):
            self._seen.pop(replica, None)

    def expire(self, now: float) -> list[Joined]:
        """Return what has waited ``timeout_s``, with the parts that came."""
        out: list[Joined] = []
        while self._open:
            key, group = next(iter(self._open.items()))
            if now - group.since < self.timeout_s:
                break
            out += self._close(key)
        return out

    def flush(self) -> list[Joined]:
        """Return all that waits, with the parts that came."""
        return [joined for key in list(self._open) for joined in self._close(key)]

    def _add(self, frame: wire.Routing | wire.Latency | wire.Request, now: float) -> list[Joined]:
        part: Part = _part(frame)
        self._seen[frame.replica].setdefault(part, now)
        sent_as = (frame.replica, frame.request_id)
        for key in self._named.get(sent_as, ()):
            group = self._open[key]
            if _put(group, frame):
                return self._weighed(key, group, frame, now)
            if isinstance(frame, wire.Latency) or _is_same(group, frame):
                self.refused["duplicate"] += 1
                return []
        had = self._done.get(hash(sent_as))
        if had is not None and sent_as not in self._named and had.lacked(frame):
            self.refused["late"] += 1
            return []
        return self._begin(frame, sent_as, now)

    def _begin(self, frame: wire.Routing | wire.Latency | wire.Request, sent_as: Key, now: float) -> list[Joined]:
        """Begin a request with its first part; under another id where there is or was one with this id."""
        key = sent_as
        if hash(sent_as) in self._done or sent_as in self._named:
            key = (frame.replica, request_ids.apart(frame.request_id, f"{frame.source} {frame.seq}"))
        if key in self._open:
            self.refused["duplicate"] += 1
            return []
        group = self._open[key] = _Group(sent_as, now)
        self._named[sent_as].append(key)
        _put(group, frame)
        return self._weighed(key, group, frame, now)

    def _weighed(
        self, key: Key, group: _Group, frame: wire.Routing | wire.Latency | wire.Request, now: float
    ) -> list[Joined]:
        """Add the size of ``frame``, which the group has now; return the request when it is complete."""
        size = memory.weigh(frame)
        group.size += size
        self.bytes += size
        return self._close(key) if self._is_complete(key, group, now) else []

    def _expected(self, replica: str, now: float) -> frozenset[Part]:
        """Return the parts that this replica sends: all of them while it is new, then those that it ever sent."""
        seen = self._seen[replica]
        if len(seen) == len(_PARTS):
            return _ALL
        is_new = now - min(seen.values(), default=now) < self.timeout_s
        return _ALL if is_new else frozenset(seen)

    def _is_complete(self, key: Key, group: _Group, now: float) -> bool:
        expected = self._expected(key[0], now)
        if "request" in expected and group.request is None:
            return False
        if _is_refused(group):
            return True
        routed = len(group.routings) >= group.choices or "routing" not in expected
        timed = len(group.latencies) >= group.choices or "latency" not in expected or _is_aborted(group)
        return routed and timed

    def _close(self, key: Key) -> list[Joined]:
        group = self._open.pop(key)
        self.bytes -= group.size
        self._named[group.sent_as].remove(key)
        if not self._named[group.sent_as]:
            del self._named[group.sent_as]
        joined = list(_pair(key, group, set(self._seen.get(key[0], ()))))
        complete = all(one.complete for one in joined) or (_is_refused(group) and not _is_aborted(group))
        had = (tuple(group.routings), len(group.latencies), group.request is not None, group.choices)
        digest = hash(group.sent_as)
        self._done[digest] = _Had(*had, complete=complete)
        self._done.move_to_end(digest)
        if len(self._done) > _MOST_DONE:
            self._done.popitem(last=False)
        return joined


def _part(frame: wire.Routing | wire.Latency | wire.Request) -> Part:
    if isinstance(frame, wire.Routing):
        return "routing"
    return "latency" if isinstance(frame, wire.Latency) else "request"


def _put(group: _Group, frame: wire.Routing | wire.Latency | wire.Request) -> bool:
    """Put ``frame`` into its place; return False when the place is taken."""
    if isinstance(frame, wire.Latency):
        if len(group.latencies) >= _MOST_CHOICES:
            return False
        group.latencies.append(frame)
        return True
    if isinstance(frame, wire.Routing):
        if frame.choice in group.routings or len(group.routings) >= _MOST_CHOICES:
            return False
        group.routings[frame.choice] = frame
        return True
    if group.request is not None:
        return False
    group.request = frame
    return True


def _is_same(group: _Group, frame: wire.Routing | wire.Latency | wire.Request) -> bool:
    """Say whether the place of ``frame`` is taken by the very same frame."""
    there = group.routings.get(frame.choice) if isinstance(frame, wire.Routing) else group.request
    return there is not None and (there.source, there.seq) == (frame.source, frame.seq)


def _is_refused(group: _Group) -> bool:
    """Say whether the request ended before it reached the engine."""
    failed = group.request is not None and group.request.status >= 400
    return failed and not group.routings and not group.latencies


def _is_aborted(group: _Group) -> bool:
    """Say whether vLLM may have dropped the request without any statistics."""
    gone = group.request is not None and group.request.disconnected
    return gone or any(routing.outcome == "aborted" for routing in group.routings.values())


def _pair(key: Key, group: _Group, sent: set[Part]) -> Iterable[Joined]:
    """Yield one ``Joined`` per choice; a group without routing and latency is one request."""
    if len(group.routings) == len(group.latencies) == 1:  # nearly always
        ((choice, only),) = group.routings.items()
        complete = group.request is not None or "request" not in sent
        yield Joined(*key, choice, only, group.latencies[0], group.request, complete, group.size)
        return
    routings = [group.routings[choice] for choice in sorted(group.routings)]
    latencies = _by_choice(routings, group.latencies)
    choices = sorted({*group.routings, *latencies}) or [0]
    for choice in choices:
        routing, latency = group.routings.get(choice), latencies.get(choice)
        missing = {"routing"} & sent if routing is None else set()
        missing |= {"latency"} & sent if latency is None and not _is_aborted(group) else set()
        missing |= {"request"} & sent if group.request is None else set()
        size = group.size // len(choices)
        yield Joined(*key, choice, routing, latency, group.request, complete=not missing, size=size)


def _by_choice(routings: list[wire.Routing], latencies: list[wire.Latency]) -> dict[int, wire.Latency]:
    """Assign latencies to choices: by their own number where it tells them apart, else by number of tokens.

    Both lists sorted by length, shortest first, pair with the least total difference in length.
    """
    own = {latency.choice: latency for latency in latencies}
    if len(own) == len(latencies) and (len(latencies) > 1 or {routing.choice for routing in routings} >= set(own)):
        return own
    by_length = sorted(routings, key=lambda routing: (routing.decode_routed, routing.prompt_tokens))
    timed = sorted(latencies, key=lambda latency: (latency.output_tokens, latency.prompt_tokens))
    taken = {routing.choice for routing in routings}
    free = (choice for choice in itertools.count() if choice not in taken)
    pairs = {routing.choice: latency for routing, latency in zip(by_length, timed, strict=False)}
    return pairs | {next(free): latency for latency in timed[len(by_length) :]}
