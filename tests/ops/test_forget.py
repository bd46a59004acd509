"""Forgetting: no byte of a person is left in store, spool and exports, everyone else is, and the command proves it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from moe_watch import wire
from moe_watch.cli.main import main
from moe_watch.sidecar.join import Join
from moe_watch.store import engine, migrate, schema
from moe_watch.store.records import served_models
from moe_watch.store.spool import Spool
from moe_watch.store.write import request_rows
from moe_watch.store.write.batch import NewAlarm, Writes, write
from tests.sidecar.test_sidecar import Process
from tests.store.test_store_write import alarm_values
from tests.support.frames import Tap

ANN = wire.user_hash("ann")
SAID = "the words of ann, long enough for a page of its own " * 400
TRACES = (ANN.encode(), SAID[:40].encode(), b"cmpl-ann")


def batch(start: int, n: int) -> Writes:
    """Return ``n`` requests, every third of ann's with her text, and an alarm that names all of them."""
    tap, join = Tap(), Join(5.0)
    model = tap.announce()
    names = [f"cmpl-{'ann' if i % 3 == 0 else 'bob'}-{i}" for i in range(start, start + n)]
    frames: list[wire.AnyFrame] = []
    for name in names:
        mine = "ann" in name
        sample = wire.Sample(prompt=SAID if mine else "bob's", outputs=[SAID if mine else "bob's"])
        user = {"user": ANN} if mine else {}
        frames += [tap.routing(name), tap.latency(name), tap.request(name, sample=sample, sample_rate=1.0, **user)]
    made = served_models.announcement(model, 1.0)
    made.requests = request_rows.new_requests(
        served_models.identity(model), join.add(frames, 0.0), [], None, baseline_id=None, fingerprint_rate=1.0,
        keep_samples_days=1.0,
    )  # fmt: skip
    values = alarm_values(tap.replica, flagged_at=float(start), evidence={"channel": "ood", "requests": names})
    made.alarms = [NewAlarm(served_models.identity(model), values)]
    return made


@pytest.fixture
def store(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Make a store with thirty requests, an export of it, and a spool with thirty more whose end is cut off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_WATCH_STORE__URL", store_url)
    monkeypatch.setenv("MOE_WATCH_SPOOL_DIR", str(tmp_path / "spool"))
    opened = engine.connect(store_url)
    migrate.upgrade(opened)
    write(opened, batch(0, 30))
    spool = Spool(tmp_path / "spool", 1 << 24)
    for start in (30, 45):
        spool.append(msgspec.msgpack.encode(batch(start, 15)))
    spool.append(msgspec.msgpack.encode(batch(60, 15)))
    spool.close()
    tail = max((tmp_path / "spool").glob("*.spool"))
    os.truncate(tail, tail.stat().st_size - 1)
    yield opened
    opened.dispose()


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


def traces(folder: Path) -> dict[str, list[bytes]]:
    """Return the files under ``folder`` that still have something of ann's in them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {str(path): [trace for trace in TRACES if trace in _plain(path)] for path in files}
    return {path: there for path, there in found.items() if there}


def _plain(path: Path) -> bytes:
    """Return the bytes of a file, and of a Parquet file what is in its compressed columns."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    columns = parquet.read_table(path).to_pydict()
    return path.read_bytes() + repr(columns).encode()


def count(store: Engine, table: type[schema.Base]) -> int:
    with Session(store) as session:
        return int(session.scalar(select(func.count()).select_from(table)) or 0)


def test_no_byte_of_a_person_is_left_anywhere(store: Engine, tmp_path: Path) -> None:
    """Rows, text, pages that were freed, the log of the database, the spool's cut-off end and the exports."""
    assert run("export", "--to", "copies/one", "--since", "2020-01-01").exit_code == 0
    assert traces(tmp_path)
    done = run("forget", "--user", "ann")
    assert done.exit_code == 0, done.output
    assert f"spool {tmp_path}/spool: deleted 20 rows; 0 left" in done.output
    assert "deleted 10 requests, 10 fingerprints, 10 samples, 0 shadow results, 10 mentions; 0 left" in done.output
    assert "copies/one: deleted 10 rows; 0 left" in done.output
    assert traces(tmp_path) == {}
    assert {count(store, table) for table in (schema.Request, schema.Fingerprint, schema.Sample)} == {20}
    spool = Spool(tmp_path / "spool", 1 << 24)
    kept = [msgspec.msgpack.decode(payload, type=Writes) for payload in spool.payloads()]
    assert [len(writes.requests) for writes in kept] == [10, 10]
    assert all("bob" in name for writes in kept for name in writes.alarms[0].values["evidence"]["requests"])
    spool.close()


def test_one_request_is_forgotten_by_its_id(store: Engine, tmp_path: Path) -> None:
    """In the store or in the spool, wherever it is; the others of the same person stay."""
    assert run("forget", "--request", "cmpl-ann-0").exit_code == 0
    assert count(store, schema.Request) == 29
    done = run("forget", "--request", "cmpl-ann-33")
    assert "spool: deleted 2 rows" in done.output  # the request, and the alarm that names it
    assert done.exit_code == 0
    assert b"cmpl-ann-33" not in b"".join(path.read_bytes() for path in (tmp_path / "spool").iterdir())
    assert run("forget", "--request", "cmpl-ann-33").exit_code == 1


def test_all_requests_that_had_one_id_are_forgotten_by_it(store: Engine) -> None:
    """In store, spool and exports: what was put behind a repeated id hides nothing."""
    again = batch(75, 3)
    for request, nonce in zip(again.requests, ("0" * 12, "1" * 12, "2" * 11), strict=True):
        request.values["request_id"] = f"cmpl-bob-1~{nonce}"
    write(store, again)
    assert run("export", "--to", "copies/one", "--since", "2020-01-01").exit_code == 0
    done = run("forget", "--request", "cmpl-bob-1")
    assert "deleted 3 requests" in done.output
    assert "copies/one: deleted 3 rows; 0 left" in done.output
    assert count(store, schema.Request) == 30


def test_what_a_running_sidecar_has_in_its_spool_is_waited_for(store: Engine, tmp_path: Path) -> None:
    """It is written to the store first, and deleted there; a spool that does not empty is an error."""
    spool = Spool(tmp_path / "spool", 1 << 24)  # as a running sidecar holds it
    done = run("forget", "--user", "ann", "--wait", "0.1")
    assert done.exit_code == 1
    assert "20 left (a running sidecar has not written it yet" in done.output

    def replay() -> None:
        time.sleep(0.3)
        while (payload := spool.peek()) is not None:
            write(store, msgspec.msgpack.decode(payload, type=Writes))
            spool.pop()

    writing = threading.Thread(target=replay)
    writing.start()
    done = run("forget", "--user", "ann")
    writing.join()
    spool.close()
    assert done.exit_code == 0, done.output
    assert "deleted 10 requests" in done.output
    assert count(store, schema.Request) == 40
    assert traces(tmp_path) == {}


def test_an_export_is_remembered_and_one_that_is_gone_is_said_so(store: Engine, tmp_path: Path) -> None:
    """Whoever forgets need not know where exports went; a copy elsewhere is named, and must be there."""
    for name in ("one", "two"):
        assert run("export", "--to", name, "--since", "2020-01-01").exit_code == 0
    (tmp_path / "two").rename(tmp_path / "moved")
    assert "no history at" in run("forget", "--request", "cmpl-ann-0", "--export", "nowhere").output
    done = run("forget", "--user", "ann", "--export", "moved")
    assert done.exit_code == 0, done.output
    assert "moved: deleted 10 rows" in done.output
    assert "one: deleted 9 rows" in done.output  # one went with the first command
    assert "two: deleted nothing; 0 left (not there any more" in done.output


def test_an_interruption_leaves_an_export_whole(store: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced when its new version is there, so nobody else's rows are lost."""
    assert run("export", "--to", "one", "--since", "2020-01-01").exit_code == 0

    def fail(_table: object, file: object, **_: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", fail)
    done = run("forget", "--user", "ann")
    assert done.exit_code == 1
    assert "No space left on device" in done.output
    monkeypatch.undo()
    (whole,) = (tmp_path / "one").rglob("*.parquet")
    assert parquet.read_table(whole).num_rows == 30


@pytest.mark.parametrize("words", [["--user", ""], ["--request", ""], [], ["--user", "a", "--request", "b"]])
def test_nobody_is_not_forgotten(words: list[str]) -> None:
    """An empty name would be everyone without one."""
    done = run("forget", *words)
    assert done.exit_code == 2
    assert "say what to forget" in done.output


def test_a_person_is_forgotten_while_the_sidecar_runs(tmp_path: Path) -> None:
    """Of what it has written no byte is left in its files, and it goes on."""
    process = Process(tmp_path)
    try:
        tap = Tap()
        process.send(tap.announce(), tap.health())
        for index in range(30):
            routing, latency, _ = tap.whole(f"cmpl-ann-{index}")
            sample = wire.Sample(prompt=SAID, outputs=[SAID])
            process.send(routing, latency, tap.request(routing.request_id, user=ANN, sample=sample, sample_rate=1.0))  # type: ignore[union-attr]
            process.send(*tap.whole())
        process.until(lambda s: s["replicas"] and s["replicas"][0]["requests"] == 60)
        process.until_rows("select count(*) from requests", [(60,)])
        assert traces(tmp_path)
        done = subprocess.run(
            [sys.executable, "-m", "moe_watch.cli.main", "forget", "--user", "ann"],
            env={**os.environ, **process.environment},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "30 requests, 30 fingerprints, 30 samples" in done.stdout
        assert traces(tmp_path) == {}
        process.send(*tap.whole())
        process.until(lambda s: s["replicas"][0]["requests"] == 61)
    finally:
        process.close()
