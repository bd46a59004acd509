"""All kinds of alarms open at once, with whatever numbers their detectors make: every surface still answers."""

from __future__ import annotations

import ast
import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from sqlalchemy import Engine
from starlette.testclient import TestClient

import moe_watch
from moe_watch import alarms, wire
from moe_watch.cli.main import main
from moe_watch.detect.canary.comparison import FAULTS
from moe_watch.detect.drift.replica import Standing
from moe_watch.domain.plain import plain
from moe_watch.domain.request import Joined
from moe_watch.domain.status import Matrix, Status, Store
from moe_watch.metrics import otlp, prometheus
from moe_watch.metrics.board import Board
from moe_watch.report.explain import alarms as explained
from moe_watch.settings import DetectSettings, Settings, ShadowSettings
from moe_watch.shadow.trial import Kind
from moe_watch.shadow.watch import QualityWatch
from moe_watch.sidecar import http
from moe_watch.sidecar.background import News, Siblings
from moe_watch.sidecar.writer import Writer
from moe_watch.store import engine, migrate
from moe_watch.store.records import alarms as stored_alarms
from moe_watch.store.records import baselines, served_models
from moe_watch.store.schema import CanaryRun
from moe_watch.store.spool import Spool
from moe_watch.store.write.batch import Writes, write
from tests.shadow.test_shadow_watch import LABELS, START, traffic
from tests.support import shadow_store
from tests.support.judge_bench import Bench

PROMISE = DetectSettings(average_run_length=1000)


def kinds_in_the_code() -> set[str]:
    """Return every kind of alarm that any module begins, those of the quality trials included."""
    found = set(get_args(Kind))
    for path in Path(moe_watch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "begin":
                found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def silent(request: Joined) -> Joined:
    """Return the request as if expert 5 of layer 1 got no token."""
    assert request.routing is not None
    parts = []
    for part in (request.routing.prompt, request.routing.decode):
        counts = wire.unpack_counts(part, 3, 8)
        counts[1, 2] += counts[1, 5]
        counts[1, 5] = 0
        parts.append(wire.pack_counts(counts))
    return replace(request, routing=msgspec.structs.replace(request.routing, prompt=parts[0], decode=parts[1]))


def check(verdict: str, at: float) -> CanaryRun:
    """Return a check of the canaries whose evidence never met a database."""
    by_load, loss = {"1": np.float64(2.5)}, np.array([0.1, np.nan])
    evidence = {"reason": "size", "by_load": by_load, "loss": loss, "rounds": np.int64(4)}
    return CanaryRun(id=int(at), at=at, verdict=verdict, summary="layer 2 moved", evidence=evidence)


class Everything:
    """A judge with all alarms open, and a store that it wrote."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(detect=PROMISE)
        self.bench.now = time.time() - 60
        self.url = f"sqlite:///{folder}/store.db"
        self.store = self.opened(self.url)
        self.bench.tick(1.0)
        write(self.store, self.bench.written)
        self._learn()
        for _ in range(8):
            unusual = [silent(one) for one in self.bench.joined(50, unseen=True)]
            self.bench.written.extend(self.bench.monitors.process(unusual, self.bench.now))
            self.bench.tick(6.0)
        self._hear_companions(folder)
        self.bench.monitors.hear(self.bench.tap.health("off", reason="switched off"), self.bench.now)
        self.bench.written.extend(self.bench.monitors.tick(self.bench.now))
        write(self.store, self.bench.written)

    @staticmethod
    def opened(url: str) -> Engine:
        store = engine.connect(url)
        migrate.upgrade(store)
        return store

    def _learn(self) -> None:
        self.bench.learn()
        (normal,) = self.bench.monitors._normals.values()
        (model,) = served_models.by_name(self.store, "tiny")
        row = baselines.save(self.store, model, normal.fitted, now=self.bench.now)
        baselines.promote(self.store, model, row.version, now=self.bench.now)
        self.bench.send(100)

    def _hear_companions(self, folder: Path) -> None:
        """Let quality, canaries and siblings tell of theirs, the first from real rows of a shadow."""
        (folder / "shadow").mkdir()
        rows = shadow_store.make(folder / "shadow")
        settings = Settings(shadow=ShadowSettings(reference_requests=200), detect=PROMISE)
        changes = QualityWatch(rows, settings, Board()).update(*LABELS, traffic(rows))
        assert min(change.began_at for change in changes) > START
        now = self.bench.now
        where = {"requests": np.int64(90), "layers": [np.int64(1)], "named": None, "experts": None}
        siblings = Siblings(Standing([0.0] * 12, 1.0, 20, "one layer"), 3, np.float64(now), where, 100, 3)
        self.bench.monitors.learn([News("r0", changes, check("routing", now), siblings)], now)

    @property
    def status(self) -> Status:
        replicas = self.bench.monitors.describe(self.bench.now)
        return Status("0", self.bench.now, 0.0, "ipc://x", Store(self.url, True, 0, 0), {}, {}, {}, 0, replicas)  # noqa: FBT003

    def client(self) -> TestClient:
        async def status() -> Status:
            return self.status

        async def matrix(replica: str) -> Matrix | None:
            return self.bench.monitors.matrix(replica, self.bench.now)

        registry = prometheus.registry(self.bench.board)
        source = http.Source(Settings(), self.store, registry, status, matrix, str)
        return TestClient(http.app(source), base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everything]:
    """Open every alarm."""
    made = Everything(tmp_path_factory.mktemp("everything"))
    yield made
    made.store.dispose()


def test_every_kind_of_alarm_is_open_and_has_its_place_in_the_order(everything: Everything) -> None:
    """A kind to come fails here until it is opened above and has its severity."""
    kinds = kinds_in_the_code()
    assert kinds == set(everything.bench.monitors.by_replica["r0"].alarms.open)
    assert kinds == {kind.name for kind in alarms.KINDS}


def test_what_is_said_of_a_kind_stands_in_one_table_alone() -> None:
    """Two tables once differed in which of two alarms is the worse one."""
    names = {kind.name for kind in alarms.KINDS}
    for path in Path(moe_watch.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                assert len(keys) < 3 or not keys <= names, f"{path}:{node.lineno} is another table of kinds"


def test_every_kind_says_everything_of_itself_and_its_alerts_exist() -> None:
    """Nothing is left to the words for a kind that is not known."""
    for kind in alarms.KINDS:
        said = (kind.title, kind.is_open, kind.was_open, kind.advice)
        unknown = alarms.named(kind.name + " to come")
        assert not {*said} & {unknown.title, unknown.is_open, unknown.was_open, unknown.advice}, kind.name
        assert kind.alerts, kind.name
        assert set(kind.alerts) <= set(explained.names()), kind.name


def test_an_alarm_holds_plain_values_alone(everything: Everything) -> None:
    """Whatever a detector hands over: times and evidence are what JSON and every database know."""
    for kind, alarm in everything.bench.monitors.by_replica["r0"].alarms.open.items():
        assert repr(plain(alarm.values)) == repr(alarm.values), kind
        json.dumps(alarm.values, allow_nan=False)
        assert type(alarm.values["began_at"]) is float, kind


def of_numpy(value: Any, path: str = "") -> Iterator[str]:
    """Yield where in ``value`` a number or an array of numpy is."""
    if isinstance(value, np.ndarray | np.generic):
        yield path
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from of_numpy(item, f"{path}.{key}")


def test_nothing_that_is_written_or_shown_is_of_numpy(everything: Everything) -> None:
    """Alarms, windows and requests, status and matrix alike; the hook of the encoders would hide it."""
    for found in (
        everything.bench.written,
        everything.status,
        everything.bench.monitors.matrix("r0", everything.bench.now),
    ):
        assert list(of_numpy(found)) == []


@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/matrix", "/metrics", "/", "/readyz"])
def test_every_address_answers(everything: Everything, path: str) -> None:
    """With all alarms open as without any."""
    answer = everything.client().get(path)
    assert answer.status_code == 200, answer.text[:500]
    assert answer.content


def test_the_status_names_every_alarm(everything: Everything) -> None:
    """Each with its summary, over HTTP and for the terminal."""
    (replica,) = everything.client().get("/api/v1/status").json()["replicas"]
    assert {one["kind"] for one in replica["alarms"]} == kinds_in_the_code()


@pytest.mark.parametrize("verdict", sorted(FAULTS))
def test_whatever_canaries_find_the_status_answers(everything: Everything, verdict: str) -> None:
    """Routing, weights and deployment are told by one alarm, whose evidence may be anything."""
    bench = Bench()
    bench.monitors.learn([News("r0", [], check(verdict, bench.now))], bench.now)
    bench.tick(1.0)
    assert set(bench.monitors.by_replica["r0"].alarms.open) == {"routing"}
    msgspec.json.encode(bench.monitors.describe(bench.now))


def run(everything: Everything, monkeypatch: pytest.MonkeyPatch, *command: str) -> str:
    """Run a command on the store."""
    monkeypatch.setenv("MOE_WATCH_STORE__URL", everything.url)
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_the_report_is_made_in_every_format(
    everything: Everything, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And names the alarms."""
    out = str(tmp_path / "report")
    run(everything, monkeypatch, "report", "--since", "1d", "--out", out, "--format", "html,md,json")
    made = {path.suffix: path.read_text(encoding="utf-8") for path in Path(out).iterdir()}
    assert set(made) == {".html", ".md", ".json"}
    (model,) = json.loads(made[".json"])["models"]
    assert {one["kind"] for one in model["timeline"]["alarms"]} == kinds_in_the_code()


def test_every_alarm_and_every_alert_is_explained(everything: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    """In words and as JSON."""
    found = stored_alarms.between(everything.store, 0, 4e9)
    assert {row.kind for row in found} == kinds_in_the_code()
    for row in found:
        assert f"({row.kind}, open)" in run(everything, monkeypatch, "explain", f"alarm:{row.id}")
        json.loads(run(everything, monkeypatch, "explain", "--json", f"alarm:{row.id}"))
    for name in explained.names():
        assert name in run(everything, monkeypatch, "explain", name)


def test_the_backtest_runs_over_it(everything: Everything, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the same requests."""
    assert "r0: 500 requests" in run(everything, monkeypatch, "backtest", "--since", "1d")


def test_the_metrics_can_be_sent_by_otlp(everything: Everything) -> None:
    """As the exporter of the SDK encodes them."""
    assert encode_metrics(otlp.metrics_data(everything.bench.board, time.time())).SerializeToString()


def without_alarms(everything: Everything, folder: Path) -> Engine:
    """Return a copy of the store that has no alarms."""
    copy = folder / "other.db"
    with sqlite3.connect(everything.url.removeprefix("sqlite:///")) as source, sqlite3.connect(copy) as target:
        source.backup(target)
        target.execute("DELETE FROM alarms")
    return Everything.opened(f"sqlite:///{copy}")


def spooled(batch: Writes, folder: Path, store: Engine, board: Board) -> None:
    """Put ``batch`` into the spool of a store that is away; let another writer bring it to ``store``."""

    async def through(database: Engine, *batches: Writes) -> None:
        writer = Writer(database, board, Spool(folder, 10**8))
        for one in batches:
            writer.put(one)
        writing = asyncio.create_task(writer.run())
        while bool(batches) != bool(writer.spool_bytes):
            await asyncio.sleep(0.01)
            assert not writing.done()
        writer.stop()
        await writing

    away = engine.connect("postgresql+psycopg://nobody@127.0.0.1:1/none")
    asyncio.run(through(away, batch))
    asyncio.run(through(store))


def test_every_alarm_goes_through_the_spool_and_back(everything: Everything, tmp_path: Path) -> None:
    """What the process before left open is closed, and says by what."""
    store = without_alarms(everything, tmp_path)
    spooled(everything.bench.written, tmp_path / "spool", store, Board())
    found = stored_alarms.between(store, 0, 4e9)
    assert {row.kind for row in found} == kinds_in_the_code()
    assert {row.ending for row in found} == {"sidecar_stopped"}
    store.dispose()


def test_a_row_that_cannot_be_encoded_costs_that_row_alone(everything: Everything, tmp_path: Path) -> None:
    """The writer goes on, and the loss is counted and logged; numbers of numpy are no reason to lose any."""
    store, board = without_alarms(everything, tmp_path), Board()
    batch = Writes(models=list(everything.bench.written.models), alarms=list(everything.bench.written.alarms[-5:]))
    first, second, *_ = batch.alarms
    changed = {"evidence": {"number": np.float64(0.5), "row": np.arange(3)}, "flagged_at": np.float64(1.0)}
    batch.alarms[0] = msgspec.structs.replace(first, values=first.values | changed)
    batch.alarms[1] = msgspec.structs.replace(second, values=second.values | {"evidence": {"what": object()}})
    spooled(batch, tmp_path / "spool", store, board)
    values: dict[str, Any] = {family.metric.name: family.series[0].value for family in board.read()}
    assert values["moe_watch_store_refused_total"] == 1
    assert any(row.evidence == {"number": 0.5, "row": [0, 1, 2]} for row in stored_alarms.between(store, 0, 4e9))
    store.dispose()
