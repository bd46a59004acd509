"""Stores of every earlier schema, with the rows that their version wrote, come to today's schema whole and readable."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from moe_watch.cli.main import main
from moe_watch.store import engine, migrate
from moe_watch.store.engine import StoreError
from moe_watch.store.read import history as rows
from moe_watch.store.read import requests
from moe_watch.store.records import alarms, baselines, canaries, events, served_models, shadows, windows
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes
from tests.support.frames import Tap

CORPUS = Path(__file__).parents[1] / "corpus" / "schema"
REVISIONS = sorted(path.stem for path in CORPUS.glob("*.json"))
Rows = dict[str, list[dict[str, Any]]]
RENAMED = {"episodes": "alarms"}


def test_there_are_rows_of_every_revision() -> None:
    """A new migration needs a corpus of the schema that it makes: see tests/corpus/README.md."""
    scripts = ScriptDirectory(str(migrate.scripts()))
    assert sorted(script.revision for script in scripts.walk_revisions()) == REVISIONS


@pytest.fixture(params=REVISIONS)
def old(request: pytest.FixtureRequest) -> Rows:
    """Return the rows of one revision."""
    raw: Rows = json.loads((CORPUS / f"{request.param}.json").read_text(encoding="utf-8"))
    return {"alembic_version": [{"version_num": request.param}]} | {
        table: [{name: _bytes(value) for name, value in row.items()} for row in found] for table, found in raw.items()
    }


def _bytes(value: Any) -> Any:
    return base64.b64decode(value["base64"]) if isinstance(value, dict) else value


@pytest.fixture
def store(store_url: str, old: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    """Make a store at that revision, with plain SQL, and let today's command upgrade it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_WATCH_STORE__URL", store_url)
    opened = engine.connect(store_url)
    revision = old["alembic_version"][0]["version_num"]
    migrate.upgrade(opened, revision)
    with opened.begin() as connection:
        for table, found in old.items():
            if table != "alembic_version":
                _insert(connection, table, found)
    done = CliRunner().invoke(main, ["db", "upgrade"])
    assert done.exit_code == 0, done.output
    assert f"schema {migrate.head()}" in done.output
    return opened


def _insert(connection: sa.Connection, table: str, found: list[dict[str, Any]]) -> None:
    names = list(found[0])
    marks = ", ".join(f":{name}" for name in names)
    connection.execute(text(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"), found)  # noqa: S608
    if connection.dialect.name == "postgresql" and "id" in names:  # the sequence knows nothing of these
        connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"))  # noqa: S608


def test_every_row_is_kept_as_it_was(store: Engine, old: Rows) -> None:
    """Each column of each row has the value that the earlier version wrote."""
    assert all(old.values())
    with store.connect() as connection:
        for table, before in old.items():
            if table == "alembic_version":
                continue
            names, today = ", ".join(before[0]), RENAMED.get(table, table)
            after = [dict(row) for row in connection.execute(text(f"SELECT {names} FROM {today}")).mappings()]  # noqa: S608
            assert sorted(map(_key, after)) == sorted(map(_key, before)), table


def _key(row: dict[str, Any]) -> str:
    """Return a row as text, equal for equal rows: SQLite has JSON as text and booleans as 0 and 1."""
    plain = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in row.items()}
    return repr({name: int(value) if isinstance(value, bool) else value for name, value in plain.items()})


def test_todays_queries_read_all_of_it(store: Engine, old: Rows) -> None:
    """Requests with fingerprint and text, sums, alarms, events, canaries, what the shadow found, the server benches."""
    (model,) = served_models.by_name(store, "tiny")
    (found,) = requests.find(store, "cmpl-401")
    assert found.fingerprint is not None
    assert found.sample is not None
    assert found.sample.output == "it is"
    stored = list(requests.fingerprints(store, model))
    assert sum(len(some.batch) for some in stored) == len(old["fingerprints"])
    totals = np.concatenate([some.batch.prompt for some in stored]).sum(axis=(1, 2))
    assert set(totals.tolist()) == {48 * 2 * 3}  # tokens x top-k x layers
    pooled = windows.pooled(store, model, 0, 4e9)
    assert (pooled.requests, pooled.sums.prompt_tokens) == (520, 520 * 48.0)
    (alarm,) = alarms.between(store, 0, 4e9)
    assert (alarm.kind, "left baseline 1" in alarm.summary) == ("traffic", True)
    assert [event.kind for event in events.between(store, 0, 4e9)] == ["engine_start", "baseline_promoted"]
    assert [run.verdict for run in canaries.runs(store, "tiny")] == ["healthy", "routing"]
    assert sum(len(chunk) for chunk in rows.rows(store, model, 0, 4e9)) == len(old["fingerprints"])
    with Session(store) as session:
        assert len(shadows.observed(session, 0, 4e9, model="tiny").gap) == len(old["shadows"])
        assert [bench.ratio for bench in shadows.benches(session, 0, 4e9)] == [2.0]


def test_a_baseline_is_active_or_a_new_one_is_asked_for(store: Engine, old: Rows) -> None:
    """One that today's detectors cannot read says so, and is still listed."""
    (model,) = served_models.by_name(store, "tiny")
    active = baselines.active(store)[model.identity]
    assert (active.version, active.requests, len(baselines.listed(store))) == (1, 400, 1)
    if old["alembic_version"][0]["version_num"] == "0001":
        with pytest.raises(StoreError, match="fit a new one"):
            baselines.load(store, active.id)
    else:
        assert baselines.load(store, active.id).requests == 400


def test_life_goes_on_in_it(store: Engine) -> None:
    """Today's version writes, reports on the past, and forgets in it."""
    writes = some_writes(3, Tap(replica="r9"))
    assert write(store, writes) == 3
    made = CliRunner().invoke(main, ["report", "--since", "2026-11-24", "--until", "2026-11-30", "--out", "report"])
    assert made.exit_code == 0, made.output
    (page,) = Path("report").glob("*.md")
    assert "520" in page.read_text(encoding="utf-8")
    done = CliRunner().invoke(main, ["forget", "--user", "ann"])
    assert "deleted 4 requests, 4 fingerprints, 4 samples, 4 shadow results" in done.output, done.output
    assert requests.find(store, "cmpl-401") == []
