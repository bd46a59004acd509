"""Forgetting in SQLite's bytes: pages that were split, builds that keep what is deleted, files of earlier versions."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from moe_watch import wire
from moe_watch.settings import StoreSettings
from moe_watch.store import engine, migrate
from moe_watch.store.lifecycle import forget, residue
from moe_watch.store.lifecycle.prune import prune
from moe_watch.store.write.batch import Writes, write
from tests.ops.test_forget import run
from tests.store.test_store_write import some_writes

PEOPLE = [f"person {number}" for number in range(12)]
Tune = Callable[[Any, object], None]


def _off(tuned: Tune, *, at_last: bool) -> Tune:
    """Return the tuning of a build that keeps deleted bytes unless told otherwise, or of a version that lets it."""

    def tune(connection: Any, record: object) -> None:
        if not at_last:
            connection.execute("PRAGMA secure_delete=OFF")
        tuned(connection, record)
        if at_last:
            connection.execute("PRAGMA secure_delete=OFF")

    return tune


def _fill(store: Engine) -> dict[str, list[str]]:
    """Write rows of many people under random ids, so that pages are split, with a pruning in between."""
    draw, ids = random.Random(7), {name: list[str]() for name in PEOPLE}  # noqa: S311
    for at in range(30):
        batch = some_writes(1)
        (like,) = batch.requests
        batch.requests = []
        for _ in range(60):
            name, request_id = draw.choice(PEOPLE), f"chatcmpl-{draw.getrandbits(96):024x}"
            ids[name].append(request_id)
            values = like.values | {"request_id": request_id, "user_hash": wire.user_hash(name)}
            batch.requests.append(type(like)(like.identity, values, like.fingerprint, like.sample))
        write(store, batch)
        if at == 10:
            prune(store, StoreSettings(keep_requests_days=36500), 1e9)
    return ids


def _left(folder: Path, name: str, ids: list[str]) -> list[str]:
    raw = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    return [found for found in (wire.user_hash(name), *ids) if found.encode() in raw]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point the commands to a store in a folder of its own."""
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("MOE_WATCH_STORE__URL", f"sqlite:///{tmp_path}/store/a.db")
    return tmp_path / "store"


def _opened(folder: Path) -> Engine:
    store = engine.connect(f"sqlite:///{folder}/a.db")
    migrate.upgrade(store)
    return store


@pytest.mark.parametrize("earlier", [False, True], ids=["this version", "earlier version"])
def test_no_byte_is_left_after_page_splits_where_the_build_keeps_what_is_deleted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, earlier: bool
) -> None:
    """Neither of rows that this version wrote, nor of those that an earlier one left in pages."""
    tuned = engine._tune_sqlite
    monkeypatch.setattr(engine, "_tune_sqlite", _off(tuned, at_last=earlier))
    store = _opened(folder)
    ids = _fill(store)
    store.dispose()
    monkeypatch.setattr(engine, "_tune_sqlite", _off(tuned, at_last=False))
    for name in PEOPLE[:6]:
        assert _left(folder, name, ids[name])
        done = run("forget", "--user", name)
        assert done.exit_code == 0, done.output
        assert "; 0 left" in done.output
        assert _left(folder, name, ids[name]) == []
    assert len(_left(folder, PEOPLE[6], ids[PEOPLE[6]])) == 1 + len(ids[PEOPLE[6]])


def test_pruning_leaves_no_byte_either(folder: Path) -> None:
    """What is past its time is gone from the file, and so it is in every later transaction."""
    store = _opened(folder)
    ids = _fill(store)
    for _ in range(2):
        prune(store, StoreSettings(keep_requests_days=1), 4e9)
    engine.empty_log(store)
    assert [found for name in PEOPLE for found in _left(folder, name, ids[name])] == []
    with store.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA secure_delete").scalar() == 1
    store.dispose()


def test_bytes_that_stay_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file cannot be written anew, the command counts what is left in it and fails."""
    monkeypatch.setattr(engine, "_tune_sqlite", _off(engine._tune_sqlite, at_last=True))
    store = _opened(folder)
    _fill(store)
    store.dispose()
    monkeypatch.setattr(forget, "rewrite", lambda _: None)
    done = run("forget", "--user", PEOPLE[0])
    assert done.exit_code == 1
    assert "; 0 left" not in done.output
    assert "not everything is known to be gone" in done.output


def test_an_id_that_is_part_of_others_is_not_taken_for_left(folder: Path) -> None:
    """The rows of those are to stay, and the file is not written anew for them."""
    store = _opened(folder)
    batch = some_writes(20)  # cmpl-0 to cmpl-19
    batch.alarms[0].values["evidence"]["requests"] = ["cmpl-1", "cmpl-11"]
    write(store, Writes(models=batch.models, requests=batch.requests, alarms=batch.alarms))
    store.dispose()
    done = run("forget", "--request", "cmpl-1")
    assert done.exit_code == 0, done.output
    assert "; 0 left" in done.output


_NAMES = st.lists(st.text("abcé", min_size=1, max_size=12), min_size=1, max_size=8)


@given(st.data(), _NAMES, st.binary(max_size=60))
def test_names_are_found_wherever_they_stand(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list[str], around: bytes
) -> None:
    """Over the edges of what is read at once too; those that are too short are left out."""
    there = data.draw(st.lists(st.sampled_from(names), max_size=4))
    raw = around.join(name.encode() for name in there)
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residue, "_CHUNK_BYTES", data.draw(st.integers(1, 20)))
        found = residue.found([path, path.with_name("not there")], names)
    assert found == {name for name in names if len(name.encode()) >= 6 and name.encode() in raw}
