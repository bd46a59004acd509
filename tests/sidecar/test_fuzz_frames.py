"""A hundred thousand malformed frames, through everything that reads them: nothing crashes, and memory is bounded."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import numpy as np
import pytest

from moe_watch import wire
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.intake import MOST_REPLICAS, MOST_SOURCES, Intake
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.sidecar.writer import Writer
from moe_watch.store import engine, migrate
from moe_watch.store.write.batch import Writes
from tests.sidecar.test_sidecar import Process
from tests.support.frames import Tap

FRAMES: Final = 100_000
_AT_ONCE: Final = 2_000
_NASTY: Final[tuple[Any, ...]] = (
    *(None, True, -1, 0, 1, 2**31 - 1, 2**31, 2**63 - 1, 2**64 - 1, 0.0, -1.0, 1e308, float("nan"), float("inf")),
    *("", "\0", "x" * 300, "\ud7ff\U0010ffff", b"", b"\xff" * 24, [], [0] * 100, {}, {"a": {"b": []}}),
)
Random = np.random.Generator


def corpus() -> list[bytes]:
    """Return one good frame of each kind, in variants."""
    tap = Tap()
    sample = wire.Sample(prompt="a", outputs=["b"], params={"n": 1})
    frames: list[wire.AnyFrame] = [
        tap.announce(layer_ids=[0, 2, 4], parallel={"tp": 2}),
        *tap.whole("cmpl-1"),
        tap.routing("cmpl-2", entropy=None, margin=None, choice=3),
        tap.request("cmpl-3", sample=sample, choices=4),
        tap.health(dropped={"queue_full": 3}),
        wire.Event(**tap.engine(), kind="engine_start", detail="x", at=1.0),
    ]
    return [wire.encode(frame) for frame in frames]


def _flip(raw: bytes, random: Random) -> bytes:
    damaged = bytearray(raw)
    for at in random.integers(len(damaged), size=random.integers(1, 6)):
        damaged[at] = random.integers(256)
    return bytes(damaged)


def _cut(raw: bytes, random: Random) -> bytes:
    start, end = np.sort(random.integers(len(raw) + 1, size=2))
    return raw[start:end] if random.random() < 0.3 else raw[:end]


def _splice(raw: bytes, random: Random) -> bytes:
    at = int(random.integers(len(raw)))
    return raw[:at] + random.bytes(int(random.integers(1, 40))) + raw[at:]


def _confuse(raw: bytes, random: Random) -> bytes:
    """Put values of other types and sizes into fields of a frame that stays valid msgpack."""
    fields = msgspec.msgpack.decode(raw)
    fields["seq"] = int(random.integers(2**40))
    for name in random.choice(list(fields), size=random.integers(1, 4)):
        fields[name] = _NASTY[random.integers(len(_NASTY))]
    return msgspec.msgpack.encode(fields)


def _exaggerate(raw: bytes, random: Random) -> bytes:
    """Change numbers to others that each field allows by itself."""
    fields = msgspec.msgpack.decode(raw)
    fields["seq"] = int(random.integers(2**40))
    fields["replica"] = f"r{random.integers(400)}"
    for name, value in list(fields.items()):
        if isinstance(value, int) and not isinstance(value, bool) and name not in {"version", "seq"}:
            fields[name] = int(random.choice([value, 0, 1, 2, 7, 2**20, 2**31 - 1]))
        elif isinstance(value, float):
            fields[name] = float(random.choice([value, 0.0, -1e308, 1e308, 5e-324, np.nan, np.inf]))
    return msgspec.msgpack.encode(fields)


def malformed(n: int, seed: int = 0) -> Iterator[bytes]:
    """Yield ``n`` damaged frames."""
    random, good = np.random.default_rng(seed), corpus()
    ways = (_flip, _cut, _splice, _confuse, _exaggerate, lambda raw, r: r.bytes(int(r.integers(len(raw)))))
    for _ in range(n):
        yield ways[random.integers(len(ways))](good[random.integers(len(good))], random)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_hundred_thousand_malformed_frames_harm_nothing(tmp_path: Path) -> None:
    """Intake, join, judge, metrics and store take what is left of them, and a good request in between counts."""
    store = engine.connect(f"sqlite:///{tmp_path}/fuzz.db")
    migrate.upgrade(store)
    intake, join, monitors = Intake(), Join(0.5), ReplicaMonitors(Settings(), Board())
    writer, good = Writer(store, Board(), None), Tap(replica="good", source="engine-good")
    raws, now, seen, rss = malformed(FRAMES), time.time(), 0, 0.0
    for step in range(FRAMES // _AT_ONCE):
        some = [next(raws) for _ in range(_AT_ONCE)]
        some += [wire.encode(frame) for frame in (good.announce(), *good.whole())]
        frames = intake.take(some, float(step))
        seen += len(some)
        _judge(monitors, [*join.add(frames, float(step)), *join.expire(float(step))], frames, writer, now + step)
        if step == 10:
            rss = _rss_mb()
    assert len(list(raws)) == 0
    assert sum(intake.received.values()) + sum(intake.refused.values()) == seen
    assert intake.refused["malformed"] > FRAMES / 3
    assert len(intake._replicas) <= MOST_REPLICAS
    assert len(intake._sources) <= MOST_SOURCES
    assert len(join) <= join.most_open
    assert monitors.by_replica["good"].snapshot(now).requests == FRAMES // _AT_ONCE
    assert _rss_mb() - rss < 150


def _judge(
    monitors: ReplicaMonitors, joined: list[Any], frames: list[wire.AnyFrame], writer: Writer, now: float
) -> None:
    """Do with frames what the sidecar does with them."""
    for frame in frames:
        if isinstance(frame, wire.Model):
            monitors.announce(frame, now)
        elif isinstance(frame, wire.Health | wire.Event):
            monitors.hear(frame, now)
    writes = Writes()
    writes.extend(monitors.process(joined, now))
    writes.extend(monitors.tick(now))
    assert writer._write(writes)


def test_malformed_frames_on_the_socket_harm_nothing(tmp_path: Path) -> None:
    """A real sidecar refuses and counts five thousand of them, and takes the good request behind them."""
    process = Process(tmp_path)
    try:
        tap = Tap(replica="good", source="engine-good")
        process.send(tap.announce())
        for raw in malformed(5_000, seed=1):
            process.send(raw)
        process.send(*tap.whole())
        process.until(lambda s: any(r["replica"] == "good" and r["requests"] == 1 for r in s["replicas"]))
        assert httpx.get(f"{process.server.url}/metrics", timeout=30).status_code == 200
        status = Path(f"/proc/{process.server.process.pid}/status").read_text()
        assert int(status.partition("VmRSS:")[2].split()[0]) / 1024 < 400
    finally:
        process.close()
    assert process.server.process.returncode == 0
