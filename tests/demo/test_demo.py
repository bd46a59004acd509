"""The demo says what it shows, and ends with an error where something is not shown or a server is gone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from io import StringIO
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from demo import __main__ as demo
from demo import claims, servers, story
from demo.claims import Said
from demo.servers import Server, ServerError
from demo.sidecar import Sidecar
from demo.stage import MODEL, Stage
from demo.waiting import PATIENCE_S, Clock, NotShown, Wait
from moe_watch.domain.status import Alarm, Suspect
from moe_watch.report.build.gather import gather
from moe_watch.report.data.types import Period
from moe_watch.report.render import as_json
from moe_watch.settings import Settings
from moe_watch.store import engine, migrate
from tests.support import store_factory
from tests.support.patience import PATIENCE_S as PATIENT_S

FAKE = Path(__file__).parents[1] / "support" / "fake_demo.py"


def fake(stage: Stage, name: str, *behaviour: str) -> Server:
    """Start a process that answers like ``name`` and put it on ``stage``."""
    port = servers.free_port()
    command = [sys.executable, str(FAKE), str(port), *behaviour]
    url, env = f"http://127.0.0.1:{port}", {"PYTHONPATH": str(FAKE.parents[1])}
    server = stage._track(servers.start(name, command, url=url, work=stage.out, env=env))
    while True:
        server.check()
        try:
            httpx.options(url, timeout=PATIENT_S)
        except httpx.ConnectError:
            continue
        return server


def set_up(stage: Stage, sidecar: tuple[str, ...] = (), moe: tuple[str, ...] = ()) -> None:
    """Put a fake vLLM, a fake sidecar and an empty store on ``stage``."""
    migrate.upgrade(engine.connect(stage.env["MOE_WATCH_STORE__URL"]))
    fake(stage, "vllm-moe", *moe)
    stage.sidecar = Sidecar(fake(stage, "sidecar", *sidecar), stage.env["MOE_WATCH_STORE__URL"], MODEL, "demo")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stage], None]], Result]:
    """Return a function that runs the demo with another story."""

    def run_demo(acts: Callable[[Stage], None]) -> Result:
        monkeypatch.setattr(demo, "run", acts)
        return CliRunner().invoke(demo.main, ["--out", str(tmp_path / "demo")])

    return run_demo


@pytest.fixture
def all_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take everything sent as judged and stored."""
    monkeypatch.setattr(Sidecar, "unjudged", lambda *_: "")


def test_a_sidecar_that_ends_in_act_3_ends_the_demo_with_its_log(run: Callable[..., Result], tmp_path: Path) -> None:
    """It says which server ended, how, what its log says last and where the logs are; the exit code is 3."""

    def acts(stage: Stage) -> None:
        set_up(stage, sidecar=("3", "end"))
        story._stay_silent(stage)

    done = run(acts)
    assert done.exit_code == 3
    assert "Error: sidecar ended with code 7." in done.output
    assert "the end of the fake" in done.output
    assert f"The logs are kept in {tmp_path / 'demo'}: sidecar.log, vllm-moe.log" in done.output
    assert "no alarm" not in done.output


def test_a_vllm_that_ends_under_the_traffic_ends_the_demo(run: Callable[..., Result]) -> None:
    """Not with a traceback of the client's."""

    def acts(stage: Stage) -> None:
        set_up(stage, moe=("20", "end"))
        story._stay_silent(stage)

    done = run(acts)
    assert done.exit_code == 3
    assert "Error: vllm-moe ended with code 7." in done.output


@pytest.mark.usefixtures("all_judged")
def test_an_error_of_the_sidecar_is_never_not_yet(run: Callable[..., Result]) -> None:
    """A status that answers 500 ends the demo at once: nothing was flagged is another sentence."""

    def acts(stage: Stage) -> None:
        set_up(stage, sidecar=("2", "500"))
        story._flag_traffic(stage)

    done = run(acts)
    assert done.exit_code == 3
    assert "GET /api/v1/status of the sidecar answers 500: Internal Server Error" in done.output


@pytest.mark.usefixtures("all_judged")
def test_traffic_that_is_not_flagged_ends_the_demo_with_another_code(run: Callable[..., Result]) -> None:
    """It says what was expected and what was seen."""

    def acts(stage: Stage) -> None:
        set_up(stage)
        story._flag_traffic(stage)

    done = run(acts)
    assert done.exit_code == 1
    assert "Expected: traffic drift is flagged within 300 requests" in done.output
    assert "Seen:     all of them are judged, open alarms: none" in done.output
    assert "The logs are kept in" in done.output


def test_a_server_that_ends_under_a_command_ends_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that waits for ever does not hide it."""
    with ExitStack() as stack:
        stage = Stage(Console(file=StringIO()), tmp_path / "demo", stack)
        command = [sys.executable, "-c", "import time; time.sleep(1)"]
        stage._track(servers.start("sidecar", command, url="http://x", work=tmp_path, env={}))
        hangs = [sys.executable, "-c", "import time; time.sleep(3600)"]
        monkeypatch.setattr("demo.stage._COMMAND", hangs)
        with pytest.raises(ServerError, match="sidecar ended with code 0"):
            stage.command("status")


class _Time:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.at = 0.0

    def wait(self, console: Console | None = None) -> Wait:
        return Wait(console or Console(file=StringIO()), "all is judged", Clock(lambda: self.at, self.sleep))

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def test_a_wait_goes_on_as_long_as_something_changes() -> None:
    """However long it takes in all; what stays the same for ten minutes is given up, and told."""
    time = _Time()
    wait = time.wait()
    for judged in range(100):
        wait.still(f"{judged} judged")
        time.sleep(PATIENCE_S - 1)
    time.sleep(2)
    with pytest.raises(NotShown, match=r"(?s)Expected: all is judged.*99 judged; that has not changed for 10 minutes"):
        wait.still("99 judged")


def test_a_long_wait_says_what_it_waits_for() -> None:
    """A line every quarter of a minute where there is no terminal; none for short ones."""
    screen, time = StringIO(), _Time()
    wait = time.wait(Console(file=screen, width=200))
    wait.still("1 judged")
    assert screen.getvalue() == ""
    for _ in range(240):
        wait.pause()
        wait.still("2 judged")
    lines = screen.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0].strip().startswith("Waiting until all is judged, 15 s so far: 2 judged")


def alarm(kind: str, at: float) -> Alarm:
    return Alarm(kind, at, at, f"{kind} moved")


def test_only_an_alarm_of_this_traffic_counts_as_flagged() -> None:
    """Neither an older one nor one of another kind."""
    assert claims.flagged([alarm("garbled", 9.0), alarm("traffic", 9.0)], 5.0, 300).kind == "traffic"
    for others in ([], [alarm("garbled", 9.0)], [alarm("traffic", 4.0)]):
        with pytest.raises(NotShown, match="flagged within 300 requests"):
            claims.flagged(others, 5.0, 300)


def test_the_most_unusual_requests_are_the_least_likely_ones() -> None:
    """And there are some."""
    given = [Suspect(str(p), p, 0.0) for p in (0.009, 0.001, 0.005)]
    assert [found.p for found in claims.suspected(given, most=2)] == [0.001, 0.005]
    with pytest.raises(NotShown, match="named as unusual"):
        claims.suspected([])


GOOD = {
    "explained": (claims.names_layers_and_experts, Said("explain x", 0, "layer 4: share of\nexpert 5 from 7 % to 0 %")),
    "traffic alone": (claims.traffic_alone, Said("canary run", 0, "healthy: 106 canaries are routed as before")),
    "at fault": (
        lambda said: claims.routing_at_fault(said, 2),
        Said("canary run", 2, "routing: 3 moved, layer 2 is at fault"),
    ),
    "alarm told": (claims.alarm_told, Said("status", 2, "replica   demo\nverdict   routing for 2 s: x")),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_command_has_to_say_what_is_claimed_and_to_end_so(name: str) -> None:
    """The right words with another exit code are not enough, nor the exit code with other words."""
    claim, said = GOOD[name]
    claim(said)
    for wrong in (
        Said(said.command, 1, said.text),
        Said(said.command, said.code, "verdict healthy, layer 9"),
        Said("x", 0, ""),
    ):
        with pytest.raises(NotShown, match="Expected: "):
            claim(wrong)


def test_an_alarm_on_normal_traffic_is_told_with_its_words() -> None:
    """One that has ended by itself, too: the stage remembers them."""
    claims.no_alarm([])
    with pytest.raises(NotShown, match="Seen:     routing left the baseline"):
        claims.no_alarm(["routing left the baseline"])


def test_the_alarms_of_a_report_are_read_as_the_report_writes_them() -> None:
    """From the JSON of a real review."""
    period = Period(store_factory.UNTIL - 7 * store_factory.DAY, store_factory.UNTIL)
    report = gather(store_factory.shared(), Settings(), period, now=store_factory.UNTIL)
    assert claims.alarms_in(json.loads(as_json.render(report))) >= {"traffic"}


def test_a_report_has_to_be_there_and_to_have_both_alarms(tmp_path: Path) -> None:
    """In every format."""
    said = Said("report", 0, "")
    with pytest.raises(NotShown, match="Seen:     nothing"):
        claims.reported(said, tmp_path)
    for suffix in (".html", ".md", ".json"):
        kinds = [{"timeline": {"alarms": [{"kind": "traffic"}]}}, {"timeline": {"alarms": [{"kind": "routing"}]}}]
        (tmp_path / f"moe-watch-1{suffix}").write_text(json.dumps({"models": kinds}))
    claims.reported(said, tmp_path)
    (tmp_path / "moe-watch-1.json").write_text(json.dumps({"models": kinds[:1]}))
    with pytest.raises(NotShown, match="it has traffic"):
        claims.reported(said, tmp_path)


def test_a_server_is_told_nothing_that_changed_since_this_process_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests start servers from a thread while others set variables: one such became a sidecar's key, once."""
    monkeypatch.setenv("MOE_WATCH_CANARY__SECRET", "of another test")
    code = "import os; print(os.environ.get('MOE_WATCH_CANARY__SECRET'), os.environ['OWN'])"
    server = servers.start("tells", [sys.executable, "-c", code], url="", work=tmp_path, env={"OWN": "1"})
    server.process.wait(PATIENT_S)
    assert server.log.read_text() == "None 1\n"
