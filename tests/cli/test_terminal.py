"""What clients, taps and servers wrote is shown as it is: it moves no cursor, hides nothing and is no line of ours."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import click
import pytest
import structlog
from click.testing import CliRunner
from sqlalchemy import update
from sqlalchemy.orm import Session

from moe_watch.cli import log
from moe_watch.cli.commands.status import view
from moe_watch.cli.main import main
from moe_watch.cli.screen import Screen
from moe_watch.domain import status
from moe_watch.store import engine, migrate, schema
from moe_watch.store.records import canaries, served_models
from moe_watch.store.schema import CanaryRun
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes
from tests.support import hostile_server
from tests.support.frames import Tap
from tests.support.hostile_server import HOSTILE, a_replica

# What each command is asked. A new command fails the test until it is here.
ASKED = {
    "backtest": ["--model", HOSTILE],
    "baseline fit": ["--note", HOSTILE, "--promote"],
    "baseline list": [],
    "baseline promote": ["1"],
    "baseline relearn": [],
    "baseline show": ["1"],
    "bench-servers": ["--rounds", "2", "--concurrency", "1"],
    "canary list": [],
    "canary record": ["--rounds", "4"],
    "canary run": [],
    "db prune": [],
    "db upgrade": [],
    "doctor": [],
    "explain": ["1"],
    "export": ["--to", f"to {HOSTILE}".replace("/", "")],
    "forget": ["--request", HOSTILE],
    "kv-cache": [HOSTILE.replace("/", "")],
    "provision": ["--grafana", "http://127.0.0.1:PORT", "--token", "t"],
    "report": ["--out", "."],
    "serve": ["--endpoint", HOSTILE],
    "shadow": ["--url", "http://" + HOSTILE],
    "status": [],
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return the port of a hostile server, in a folder with a store in which every name is hostile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("MOE_WATCH_STORE__URL", f"sqlite:///{tmp_path}/a.db")
    monkeypatch.setenv("MOE_WATCH_DETECT__BASELINE_MIN_REQUESTS", "50")
    (tmp_path / HOSTILE.replace("/", "")).write_text("{}")
    store = engine.connect(f"sqlite:///{tmp_path}/a.db")
    migrate.upgrade(store)
    write(store, some_writes(120, Tap(replica=HOSTILE, model=HOSTILE), sample=False))
    with Session(store) as session, session.begin():
        session.execute(update(schema.Alarm).values(summary=HOSTILE))
        session.execute(update(schema.Event).values(detail=HOSTILE))
        session.execute(update(schema.Request).where(schema.Request.id == 1).values(request_id=HOSTILE))
        session.execute(update(schema.Model).values(detail={"revision": HOSTILE}))
    model = served_models.by_name(store, HOSTILE)[0]
    columns = {"set_version": HOSTILE, "engine": HOSTILE, "load": "idle", "first_layer": None, "blob": b""}
    found = {"verdict": "healthy", "effect": 0.0, "summary": HOSTILE, "replica": HOSTILE, "evidence": {}}
    canaries.save(store, CanaryRun(model_id=model.id, at=1.0, reference=False, **columns, **found))
    store.dispose()
    with hostile_server.running() as port:
        monkeypatch.setenv("MOE_WATCH_HTTP__PORT", str(port))
        monkeypatch.setenv("MOE_WATCH_VLLM_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("MOE_WATCH_SHADOW__URL", f"http://127.0.0.1:{port}")
        yield port


def leaves(group: click.Group, before: str = "") -> Iterator[str]:
    """Yield the words of every command that does something."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from leaves(found, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def assert_harmless(shown: str) -> None:
    wrong = {c for c in shown if c != "\n" and unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}}
    assert wrong == set(), shown
    assert not [line for line in shown.splitlines() if line.startswith("INJECTED")], shown


def test_no_command_prints_a_hostile_name_as_it_is(world: int) -> None:
    """Every command, over a store and servers of which each name is hostile, to a terminal and as JSON."""
    assert set(leaves(main)) == set(ASKED)
    quoting = 0
    for words in sorted(ASKED, key=lambda words: (words != "baseline fit", words)):
        asked = [*words.split(), *(argument.replace("PORT", str(world)) for argument in ASKED[words])]
        done = CliRunner().invoke(main, asked)
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        assert_harmless(done.output)
        quoting += "INJECTED" in done.output
    assert quoting > 10
    for asked in (
        ["status", "--json"],
        ["explain", "1", "--json"],
        ["bench-servers", "--json", *ASKED["bench-servers"]],
    ):
        done = CliRunner().invoke(main, asked)
        assert done.stdout.isascii()
        assert json.loads(done.stdout)


def test_an_error_of_a_command_line_is_harmless_too() -> None:
    """A name that a command does not know is quoted as text, and the exit code is click's."""
    for asked in ([HOSTILE], ["report", "--format", HOSTILE], ["canary", HOSTILE]):
        done = CliRunner().invoke(main, asked)
        assert done.exit_code == 2
        assert_harmless(done.output)


def test_a_hostile_status_is_shown_as_text() -> None:
    """Brackets stay, escapes and overrides are made visible, and nothing is read as markup."""
    screen = StringIO()
    store = status.Store("sqlite://", True, 0, 0)  # noqa: FBT003
    seen = status.Status("0", 9.0, 0.0, "ipc://x", store, {}, {}, {}, 0, [a_replica(HOSTILE)])
    Screen(width=1000, file=screen).print(view(seen))
    shown = screen.getvalue()
    assert shown.count("tiny[/bold][awq]") >= 5
    assert_harmless(shown)


def test_colours_of_our_own_go_to_a_terminal_and_those_of_others_do_not() -> None:
    """What a text brings along is made visible between the codes that are ours."""
    screen = StringIO()
    terminal = Screen(file=screen, force_terminal=True, color_system="standard", highlight=False)
    terminal.print("[red]no[/red] \x1b[31mred")
    assert screen.getvalue() == "\x1b[31mno\x1b[0m ␛[31mred\n"


@pytest.mark.parametrize("style", ["console", "json"])
def test_the_log_is_harmless(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, events and tracebacks, whichever format they are written in."""
    err = StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    kept = structlog.get_config()
    try:
        log.configure(style)  # type: ignore[arg-type]
        logger = structlog.get_logger()
        logger.warning("alarm", kind=HOSTILE, summary="x\x1b[2J\u202ey\x9bz", many=[HOSTILE])
        logger.warning(HOSTILE)
        logger.error("failed", exc_info=ValueError("x\x1b[2J\u202ey\x9bz"))
    finally:
        structlog.configure(**kept)
    assert "ValueError" in err.getvalue()
    assert_harmless(err.getvalue())
