"""What commands print in tables is whole at every width: no cell is broken inside a word, and pipes get full lines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.text import Text
from sqlalchemy.orm import Session

from moe_watch.cli import tables
from moe_watch.cli.commands import bench_servers
from moe_watch.cli.commands import status as status_command
from moe_watch.cli.main import main
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.domain import status
from moe_watch.store import engine, migrate, schema
from moe_watch.store.records import baselines, canaries, served_models
from tests.cli.test_report_command import a_request
from tests.cli.test_terminal import a_replica
from tests.servers.test_kv_cache import DENSE_31B
from tests.support import store_factory
from tests.support.fake_openai import FakeOpenAI

NAME = "organisation/a-model-with-a-rather-long-name-27b"
NOTE = "fitted after the tokenizer of the customers in the north was changed to the one that everybody else has"
FOUND = (
    "routing: layer 3 is the first that moved (8.3% of its choices, 0.0% when healthy), so the fault is in its router "
    "or in layer 2 behind the router; log-probabilities changed by 0.27 nats a token"
)
MEASURED = {
    "concurrency": 16,
    "moe_tokens_per_s": 4458.2,
    "dense_tokens_per_s": 3350.9,
    "rounds": 2,
    "requests": 64,
    "ratio": 1.33,
    "ratio_lower": 1.2,
    "ratio_upper": 1.51,
    "moe_ttft_s": 0.12,
    "dense_ttft_s": 0.2,
}
ROOT = Path(__file__).parents[2]
WIDTHS = (60, 80, 120)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a store with a baseline and two canary checks, one of them far off."""
    monkeypatch.chdir(tmp_path)
    made = f"sqlite:///{tmp_path}/a.db"
    store = engine.connect(made)
    migrate.upgrade(store)
    with Session(store) as session, session.begin():
        session.add(schema.Model(identity="i" * 32, name=NAME, layers=2, experts=4, top_k=1, first_seen=0.0, detail={}))
    model = served_models.by_name(store, NAME)[0]
    builder = BaselineBuilder(minimum=50)
    counts = np.random.default_rng(0).multinomial(40, [0.4, 0.3, 0.2, 0.1], size=(200, 2)).astype(np.uint32)
    builder.add(Batch(counts, counts, 1))
    baselines.save(store, model, builder.build(0), now=1.0, note=NOTE)
    for at, verdict, by_load in ((1.0, "healthy", {"16": 0.4}), (2.0, "routing", {"1": 131.4, "16": 127.6})):
        columns = {"set_version": "v" * 16, "engine": "vllm", "load": "idle", "first_layer": None, "blob": b""}
        found = {
            "verdict": verdict,
            "effect": 0.0,
            "summary": FOUND,
            "replica": "gpu-a",
            "evidence": {"by_load": by_load},
        }
        canaries.save(store, schema.CanaryRun(model_id=model.id, at=at, reference=False, **columns, **found))
    return made


@pytest.fixture
def printed(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int | None], str]:
    """Return a function that runs a command at a terminal of some width, or in a pipe, and returns what it prints."""
    monkeypatch.setattr(bench_servers, "_http", lambda *_: FakeOpenAI().client())
    monkeypatch.setattr(bench_servers, "_row", lambda *_: schema.ServerBench(**MEASURED))
    monkeypatch.setattr(status_command, "fetch_status", lambda *_: ("", seen()))
    (tmp_path / "config.json").write_text(json.dumps(DENSE_31B | {"max_position_embeddings": 262_144}))
    commands = {
        "canary list": (["canary", "list"], url),
        "baseline list": (["baseline", "list"], url),
        "baseline show": (["baseline", "show", "1"], url),
        "kv-cache": (["kv-cache", str(tmp_path)], url),
        "bench-servers": (
            [*("bench-servers", "--moe", "http://a", "--dense", "http://b"), *("--concurrency", "1", "--no-save")],
            url,
        ),
        "status": (["status"], url),
        "explain a request": (["explain", a_request().request_id], str(store_factory.shared().url)),
        "explain an alarm": (["explain", "alarm:1"], str(store_factory.shared().url)),
    }

    def run(command: str, width: int | None) -> str:
        arguments, store_url = commands[command]
        terminal = {"COLUMNS": str(width or 80), "FORCE_COLOR": "1" if width else None, "TERM": "xterm"}
        done = CliRunner().invoke(main, arguments, env={"MOE_WATCH_STORE__URL": store_url, **terminal})
        assert done.exit_code in {0, 2}, done.output
        return Text.from_ansi(done.stdout).plain if width else done.stdout

    return run


COMMANDS = (
    *("canary list", "baseline list", "baseline show", "kv-cache", "bench-servers", "status"),
    *("explain a request", "explain an alarm"),
)


def seen() -> status.Status:
    """Return what a sidecar with one replica and a long-winded alarm sees."""
    store = status.Store("sqlite://", True, 0, 0)  # noqa: FBT003
    alarm = status.Alarm("routing", 0.0, 0.0, FOUND)
    replica = msgspec.structs.replace(a_replica("gpu-a"), reason=FOUND, alarms=[alarm])
    return status.Status("0", 9.0, 0.0, "ipc://x", store, {}, {}, {}, 0, [replica])


def words(printed: str) -> list[str]:
    return printed.split()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_cell_is_broken_inside_a_word_at_any_width(
    printed: Callable[[str, int | None], str], command: str, width: int
) -> None:
    """Whatever word a terminal shows is one that the pipe has, too, and no line is wider than the terminal."""
    whole = {*words(printed(command, None)), *words(printed(command, 2000))}
    narrow = printed(command, width)
    assert [word for word in words(narrow) if word not in whole] == []
    assert [line for line in narrow.splitlines() if len(line) > width and len(line.split()) > 2] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pipe_gets_full_lines_without_boxes(printed: Callable[[str, int | None], str], command: str) -> None:
    """No line is wrapped at the 80 columns that a pipe has not, and there is nothing to strip."""
    text = printed(command, None)
    assert not re.search("[\u2500-\u257f]", text)
    assert "\x1b" not in text
    assert len(text.rstrip().splitlines()) <= len(printed(command, 2000).rstrip().splitlines())
    assert set(words(printed(command, 2000))) <= set(words(text))  # nothing is cut off


def test_a_row_of_a_list_is_one_line_of_columns_two_spaces_apart(printed: Callable[[str, int | None], str]) -> None:
    """So that awk finds them, empty ones included, and numbers are whole."""
    header, newest, older = [re.split(" {2,}", line.strip()) for line in printed("canary list", None).splitlines()]
    assert header == ["at", "replica", "engine", "set", "verdict", "by load", "what was found"]
    assert newest[5] == "1: 131, 16: 128"
    assert [len(newest), len(older)] == [7, 7]
    assert newest[6] == FOUND
    (names, row) = [re.split(" {2,}", line.strip()) for line in printed("baseline list", None).splitlines()]
    assert dict(zip(names, row, strict=True))["note"] == NOTE


def test_a_narrow_terminal_gets_a_line_for_each_field(printed: Callable[[str, int | None], str]) -> None:
    """With a long last field wrapped under its own beginning."""
    lines = printed("canary list", 60).splitlines()
    assert "verdict         routing" in lines
    assert "by load         1: 131, 16: 128" in lines
    assert next(line for line in lines if line.startswith("what was found")).startswith(
        "what was found  routing: layer 3"
    )


def test_a_wide_terminal_gets_columns_with_the_last_one_wrapped(printed: Callable[[str, int | None], str]) -> None:
    """Under its own name."""
    header, *lines = printed("canary list", 120).splitlines()
    place = header.index("what was found")
    assert lines[0][place:].startswith("routing: layer 3")
    assert lines[1][:place].strip() == ""
    assert len(lines) > 2


def test_what_is_spare_goes_before_a_table_becomes_records() -> None:
    """And comes back with room."""
    grid = tables.Grid(("request", "replica", "p"), [("chatcmpl-1", "gpu-a", "0.01")], spare=("replica",))
    assert [line.plain for line in grid.lines(20)] == ["request        p", "chatcmpl-1  0.01"]
    assert [line.plain for line in grid.lines(40)] == ["request     replica     p", "chatcmpl-1  gpu-a    0.01"]


def test_an_alarm_that_is_the_verdict_is_told_once(printed: Callable[[str, int | None], str]) -> None:
    """Its summary is long enough."""
    assert printed("status", None).count(FOUND) == 1


def test_wide_characters_take_two_places() -> None:
    """Columns stay aligned behind them."""
    grid = tables.Grid(("name", "n"), [("模型", "1"), ("abcd", "22")])
    assert [line.cell_len for line in grid.lines(80)] == [8, 8, 8]


def test_numbers_are_aligned_to_the_right_and_text_to_the_left() -> None:
    """A column of numbers is one in which every cell is a number."""
    grid = tables.Grid(("a", "b"), [("1,234", "x"), ("5", "yy")])
    assert [line.plain for line in grid.lines(None)] == ["    a  b", "1,234  x", "    5  yy"]


def test_text_in_tables_keeps_its_colours_when_wrapped() -> None:
    """Each line of a wrapped field is styled like the whole."""
    fields = tables.Fields([(Text("verdict", "bold"), Text("one two three four", "red"))])
    console = Console(width=20, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as shown:
        console.print(fields)
    assert shown.get().count("\x1b[31m") == 2
    assert "\x1b[1mverdict\x1b[0m  " in shown.get()


def test_no_command_puts_a_plural_behind_a_number_that_may_be_one() -> None:
    """Counts that commands print go through ``figures.plural``: nobody reads "1 drifts"."""
    counted = "requests|samples|windows|files|rounds|drifts|blocks|references|layers|rows"
    naked = re.compile(rf"(?<!plural\()\{{[^{{}}]*\}} (\w+ )?({counted})\b")
    may_be_one = {
        f"{path.name}: {found[0]}"
        for folder in ("commands", "canary")
        for path in (ROOT / "moe_watch" / folder).glob("*.py")
        for found in naked.finditer(path.read_text(encoding="utf-8"))
    }
    assert may_be_one <= {"baseline.py: {wanted} scored requests"}  # fifty, at least
