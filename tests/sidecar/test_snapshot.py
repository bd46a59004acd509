"""The frozen picture of a replica: it is of one moment, whoever reads it changes nothing, and nobody reads more."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import msgspec
import pytest

import moe_watch
from moe_watch.sidecar.monitor import alarm_text, describe, expert_shares, publish, verdict
from moe_watch.sidecar.monitor.snapshot import ReplicaSnapshot
from tests.support.judge_bench import Bench

_MONITOR = Path(moe_watch.__file__).parent / "sidecar" / "monitor"
_READERS = (alarm_text, describe, expert_shares, publish, verdict)
_MADE_BY = {"replica_monitor", "replicas", "windows"}
_IN_ORDER = (  # a module imports only from those before it
    *("deployment_events", "fingerprints", "layer_health", "raised_alarms", "tap_health", "detectors", "snapshot"),
    *("expert_shares", "alarm_text", "verdict", "windows", "describe", "publish", "replica_monitor", "replicas"),
)


def _said(seen: ReplicaSnapshot) -> bytes:
    return msgspec.json.encode((describe.replica(seen), describe.matrix(seen)))


def test_a_snapshot_stays_as_it_was_while_requests_go_on() -> None:
    """Counts, shares, alarms and unusual requests that come later are not in it."""
    bench = Bench()
    bench.learn()
    bench.send(100)
    seen = bench.monitors.by_replica["r0"].snapshot(bench.now)
    before = _said(seen)
    bench.send(400, unseen=True)
    bench.beat("off")
    bench.tick(1.0)
    later = bench.monitors.by_replica["r0"].snapshot(bench.now)
    assert _said(seen) == before
    assert set(later.open) > set(seen.open)
    assert later.requests == seen.requests + 400
    assert int(later.latest.counts.sum()) > int(seen.latest.counts.sum())


def test_a_snapshot_cannot_be_changed() -> None:
    """Not by assignment, nor does the monitor change with what is done to its tables."""
    bench = Bench()
    monitor = bench.monitors.by_replica["r0"]
    seen = monitor.snapshot(bench.now)
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.verdict = "healthy"  # type: ignore[misc]
    seen.latest.counts[:] = 7
    assert not monitor.snapshot(bench.now).latest.counts.any()


def test_asking_for_status_or_experts_neither_opens_nor_ends_an_alarm() -> None:
    """A tap that went blind is found by the tick, whoever asks before."""
    bench = Bench()
    bench.monitors.hear(bench.tap.health("off", reason="switched off"), bench.now)
    bench.monitors.collect(bench.now)
    for _ in range(3):
        bench.monitors.matrix("r0", bench.now)
        (replica,) = bench.monitors.describe(bench.now)
        assert replica.alarms == []
    assert bench.monitors.collect(bench.now).alarms == []
    bench.monitors.tick(bench.now)
    (replica,) = bench.monitors.describe(bench.now)
    assert [alarm.kind for alarm in replica.alarms] == ["blind"]


@pytest.mark.parametrize("module", [path.stem for path in _MONITOR.glob("*.py") if path.stem != "__init__"])
def test_the_modules_of_the_monitor_import_in_one_direction(module: str) -> None:
    """Also for the type checker: nothing is imported where only it looks."""
    order = ("rolling_window", *_IN_ORDER)
    imported = _imported(_MONITOR / f"{module}.py")
    assert imported <= set(order[: order.index(module)])


@pytest.mark.parametrize("reader", _READERS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_who_shows_a_replica_knows_its_snapshot_and_not_its_monitor(reader: object) -> None:
    """Verdict, metrics, status and texts are made from values."""
    assert not _imported(Path(str(reader.__file__))) & _MADE_BY  # type: ignore[attr-defined]


def _imported(path: Path) -> set[str]:
    """Return the modules of the monitor that one of them imports, wherever in it."""
    prefix, found = "moe_watch.sidecar.monitor", set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(prefix):
            inside = (node.module or "").removeprefix(prefix).lstrip(".")
            found |= {inside} if inside else {alias.name for alias in node.names}
    return found
