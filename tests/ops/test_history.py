"""Export, backtest and forget over a real store and real Parquet files."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, delete
from sqlalchemy.orm import Session

from moe_watch import wire
from moe_watch.cli.commands import backtest as backtest_command
from moe_watch.cli.commands import export, forget
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import Baseline, BaselineBuilder
from moe_watch.ops import archive, backtest
from moe_watch.store import engine, migrate
from moe_watch.store.codecs import arrays
from moe_watch.store.lifecycle.forget import Who
from moe_watch.store.read import history as rows
from moe_watch.store.records import baselines, served_models
from moe_watch.store.schema import Fingerprint, Model, Request, Sample

LAYERS, EXPERTS, TOP_K = 3, 8, 2
START = 1_790_020_000.0  # 2026-09-21 19:06 UTC, so that the stream crosses midnight


def traffic(n: int, seed: int, *, strange: int = 0) -> Batch:
    """Return ``n`` requests about a few topics; the last ``strange`` of them are routed to experts of no topic."""
    random = np.random.default_rng(seed)
    topics = np.random.default_rng(0).dirichlet(np.full(EXPERTS, 0.6), (4, LAYERS))
    odd = np.roll(topics[0], 3, axis=1)
    counts = np.zeros((n, LAYERS, EXPERTS), np.uint32)
    for index in range(n):
        shares = odd if index >= n - strange else topics[random.integers(4)]
        for layer in range(LAYERS):
            counts[index, layer] = random.multinomial(60 * TOP_K, shares[layer])
    return Batch(counts, np.zeros_like(counts), TOP_K, finished_at=START + 60.0 * np.arange(n))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Make a store with a model, its baseline, and 400 requests on each of two replicas, 100 of one strange."""
    url = f"sqlite:///{tmp_path}/history.db"
    monkeypatch.setenv("MOE_WATCH_STORE__URL", url)
    monkeypatch.setenv("MOE_WATCH_DETECT__AVERAGE_RUN_LENGTH", "1000")
    monkeypatch.setenv("MOE_WATCH_STORE__KEEP_REQUESTS_DAYS", "100000")
    opened = engine.connect(url)
    migrate.upgrade(opened)
    model = Model(
        identity="a" * 32, name="org/moe", layers=LAYERS, experts=EXPERTS, top_k=TOP_K, first_seen=START, detail={}
    )
    with Session(opened, expire_on_commit=False) as session, session.begin():
        session.add(model)
        session.flush()
        for replica, strange in (("calm", 0), ("moved", 100)):
            batch = traffic(400, seed=7 + strange, strange=strange)
            made = request_rows(model, replica, batch)
            session.add_all(made[::2])
            session.flush()  # fingerprints point at requests
            session.add_all(made[1::2])
    builder = BaselineBuilder()
    builder.add(traffic(2000, seed=1))
    saved = baselines.save(opened, model, builder.build(), now=START)
    baselines.promote(opened, model, saved.version, now=START)
    return opened


def request_rows(model: Model, replica: str, batch: Batch) -> list[Request | Fingerprint | Sample]:
    made: list[Request | Fingerprint | Sample] = []
    for index in range(len(batch)):
        key = 1 + index + (0 if replica == "calm" else 10_000)
        request = Request(
            id=key, request_id=f"{replica}-{index}", choice=0, replica=replica, model_id=model.id,
            finished_at=START + 60.0 * index, outcome="stop", prompt_tokens=60, output_tokens=0, cached_tokens=0,
            prompt_routed=60, decode_routed=0, preemptions=0, finish_reason="stop", corrupted=False, images=0,
            domain="", user_hash=wire.user_hash("ann") if index % 4 == 0 else "", canary=False,
        )  # fmt: skip
        print_ = Fingerprint(
            request_pk=key, prompt=arrays.pack(batch.prompt[index]), decode=arrays.pack(batch.decode[index])
        )
        made += [request, print_]
    return made


def outcomes(store: Engine, tmp_path: Path) -> tuple[list[backtest.Outcome], list[backtest.Outcome]]:
    model = served_models.by_name(store)[0]
    address = str(tmp_path / "parquet")
    archive.write(rows.rows(store, model, 0, 4e9), model, address)
    baseline = baselines.load(store, baselines.active(store)[model.identity].id)
    source = archive.ParquetSource(address, archive.shapes(address)[model.identity])
    names = archive.replicas(address, model.identity)
    here = list(backtest.run_here(names, source, baseline, 1000, 0.01))
    live = list(backtest.run_here(rows.replicas(store, model), from_store(store, model), baseline, 1000, 0.01))
    return here, live


def from_store(store: Engine, model: Model) -> backtest.Source:
    return backtest_command._FromStore(store, model, 0, 4e9)


def test_a_backtest_over_parquet_says_what_one_over_the_store_says(store: Engine, tmp_path: Path) -> None:
    """The export loses nothing that a detector reads."""
    from_parquet, from_rows = outcomes(store, tmp_path)
    assert from_parquet == from_rows
    assert [one.requests for one in from_parquet] == [400, 400]


def test_a_backtest_flags_the_replica_that_moved_and_when(store: Engine, tmp_path: Path) -> None:
    """The strange requests begin at 300; they are flagged soon after, and the calm replica never."""
    _, (calm, moved) = outcomes(store, tmp_path)
    assert calm.fired == []
    assert len(moved.fired) == 1
    assert 300 <= moved.fired[0].request < 340
    assert moved.fired[0].flagged_at == START + 60.0 * moved.fired[0].request


def test_an_export_is_partitioned_by_model_and_day_and_may_be_repeated(store: Engine, tmp_path: Path) -> None:
    """Exporting twice leaves one copy of each day."""
    runner = CliRunner()
    for _ in range(2):
        done = runner.invoke(
            export.command, ["--to", str(tmp_path / "out"), "--since", "2026-09-01", "--until", "2026-12-01"]
        )
        assert done.exit_code == 0, done.output
    assert "800 requests" in done.output
    days = {path.name for path in (tmp_path / "out").glob("model=org--moe/identity=*/day=*")}
    assert days == {"day=2026-09-21", "day=2026-09-22"}
    assert len(archive.replicas(str(tmp_path / "out"), "a" * 32)) == 2


def test_a_day_that_is_archived_is_never_replaced_by_a_part_of_it(store: Engine, tmp_path: Path) -> None:
    """A later export that begins or ends within the day writes it whole; once retention cuts into it, it stays."""
    out = ["--to", str(tmp_path / "out")]
    for period in (
        ["--since", "2026-09-01"],
        ["--since", "2026-09-21T23:00"],
        ["--since", "2026-09-01", "--until", "2026-09-22T01:00"],
    ):
        assert "800 requests" in CliRunner().invoke(export.command, [*out, *period]).output
    cut = (time.time() - START) / 86_400  # days of retention that end within the first day
    kept = CliRunner(env={"MOE_WATCH_STORE__KEEP_REQUESTS_DAYS": str(cut - 0.01)})
    with Session(store) as session, session.begin():
        session.execute(delete(Request).where(Request.finished_at < START + 0.01 * 86_400))
    done = kept.invoke(export.command, [*out, "--since", "2026-09-01"])
    assert done.exit_code == 0, done.output
    assert archive._open(str(tmp_path / "out")).count_rows() == 800


def test_a_folder_without_files_is_explained(store: Engine, tmp_path: Path) -> None:
    """A backtest over it says what writes them."""
    (tmp_path / "out").mkdir()
    done = CliRunner().invoke(backtest_command.command, ["--from", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "moe-watch export --to" in done.output
    store.dispose()


def test_a_person_is_forgotten_in_store_and_export(store: Engine, tmp_path: Path) -> None:
    """Nothing of their requests is left, everyone else's stay."""
    address = str(tmp_path / "out")
    model = served_models.by_name(store)[0]
    archive.write(rows.rows(store, model, 0, 4e9), model, address)
    done = CliRunner().invoke(forget.command, ["--user", "ann", "--export", address])
    assert done.exit_code == 0, done.output
    assert "200 requests, 200 fingerprints" in done.output
    assert archive.count(address, Who(user_hash=wire.user_hash("ann"))) == 0
    with Session(store) as session:
        assert session.query(Request).count() == 600
        assert session.query(Fingerprint).count() == 600
        assert session.query(Request).filter_by(user_hash=wire.user_hash("ann")).count() == 0


def test_forgetting_says_when_there_is_nothing(store: Engine) -> None:
    """An id that is not there is an error, not silence."""
    done = CliRunner().invoke(forget.command, ["--request", "nobody"])
    assert done.exit_code == 1
    assert "nothing of it was found" in done.output


def test_a_backtest_without_history_says_how_to_make_one(store: Engine, tmp_path: Path) -> None:
    """A wrong address is named together with the command that writes one."""
    done = CliRunner().invoke(backtest_command.command, ["--from", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert "moe-watch export --to" in done.output


def test_the_command_prints_each_drift(store: Engine) -> None:
    """The store is the default source."""
    done = CliRunner().invoke(backtest_command.command, ["--since", "2026-09-01", "--until", "2026-12-01"])
    assert done.exit_code == 0, done.output
    assert "calm: 400 requests" in done.output
    assert "moved: 400 requests" in done.output
    assert ", 1 drift\n" in done.output


def test_a_baseline_survives_its_bytes(store: Engine) -> None:
    """What a worker elsewhere judges by is what is in the store."""
    model = served_models.by_name(store)[0]
    loaded = baselines.load(store, baselines.active(store)[model.identity].id)
    assert Baseline.from_bytes(loaded.to_bytes()).requests == loaded.requests
