"""What is written of requests can be read by this user alone, whatever the umask says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_watch.cli.main import main
from moe_watch.domain import private_files
from moe_watch.ops import archive
from moe_watch.store import engine, migrate
from moe_watch.store.lifecycle.forget import Who
from moe_watch.store.spool import Spool
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes


@pytest.fixture(autouse=True)
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let new files be open to everyone unless somebody says otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOE_WATCH_STORE__URL", f"sqlite:///{tmp_path}/a.db")
    before = os.umask(0)
    yield
    os.umask(before)


def open_files(folder: Path) -> list[Path]:
    """Return the files that others can read."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]


def test_store_spool_reports_and_exports_are_private(tmp_path: Path) -> None:
    """Each file of them, in folders that others can enter, and an export's file that was written again."""
    store = engine.connect(f"sqlite:///{tmp_path}/a.db")
    owner = engine.own(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(store)
    write(store, some_writes(5))
    (tmp_path / "spool").mkdir()
    spool = Spool(tmp_path / "spool", 1 << 20)
    spool.append(b"a batch")
    spool.rewrite(bytes.upper)
    for asked in (["report", "--out", "reports"], ["report", "--out", "one.html"], ["export", "--to", "exported"]):
        done = CliRunner().invoke(main, asked)
        assert done.exit_code == 0, done.output
    assert archive.forget("exported", Who(request_id="cmpl-1")) == 1
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".db", ".lock", ".spool", ".html", ".md", ".json", ".parquet"} <= names
    assert open_files(tmp_path) == []
    spool.close()
    assert owner is not None
    owner.close()


def test_a_report_over_an_open_one_is_private(tmp_path: Path) -> None:
    """The new file takes the place of the old one; whoever has that open reads what it was."""
    path = tmp_path / "a.html"
    path.write_text("old")
    path.chmod(0o666)
    with path.open() as reader:
        private_files.replace(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert open_files(tmp_path) == []


def test_a_report_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """Neither half a file nor one of another name."""
    (tmp_path / "a.html").mkdir()
    with pytest.raises(OSError, match="directory"):
        private_files.replace(tmp_path / "a.html", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_what_is_provisioned_can_be_read_by_the_programs_that_it_is_for(tmp_path: Path) -> None:
    """Prometheus, Alertmanager and Grafana run as other users."""
    assert CliRunner().invoke(main, ["provision", "--out", "made"]).exit_code == 0
    made = [path for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert made
    assert len(open_files(tmp_path / "made")) == len(made)
