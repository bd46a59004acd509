"""The command line: every command explains itself and what is wrong, and does what it says on a real store."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text
from sqlalchemy.orm import Session

from moe_watch.cli.main import main
from moe_watch.store import engine, migrate
from moe_watch.store.records import baselines, quality_references, served_models
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes
from tests.support.frames import Tap


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of an empty folder's store, set in the environment."""
    monkeypatch.chdir(tmp_path)
    made = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MOE_WATCH_STORE__URL", made)
    monkeypatch.setenv("MOE_WATCH_ENDPOINT", f"ipc://{tmp_path}/tap.sock")
    monkeypatch.setenv("MOE_WATCH_HTTP__PORT", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return made


def run(*args: str) -> Result:
    return CliRunner().invoke(main, args)


@pytest.fixture
def filled(url: str) -> str:
    """Return the address of a store with the requests of one model."""
    store = engine.connect(url)
    migrate.upgrade(store)
    writes = some_writes(600, sample=False)
    for request in writes.requests:
        request.values["finished_at"] = request.values["finished_at"] - 60
    write(store, writes)
    store.dispose()
    return url


def test_every_command_has_help() -> None:
    """Each names itself with one line in the list and its options in its own help."""
    listed = run("--help")
    assert listed.exit_code == 0
    names = main.list_commands(click.Context(main))
    assert {"baseline", "canary", "report", "shadow", "status"} <= set(names)
    for name in names:
        assert name in listed.output
        assert run(name, "--help").exit_code == 0


def test_an_unknown_command_is_named() -> None:
    """As click does it."""
    assert "No such command 'frobnicate'" in run("frobnicate").output


def test_db_upgrade_makes_the_schema_once(url: str) -> None:
    """And says what it found."""
    assert "was empty" in run("db", "upgrade").output
    assert "already" in run("db", "upgrade").output
    assert migrate.is_current(engine.connect(url))


def test_a_store_without_schema_is_explained(url: str) -> None:
    """Every command that reads it says what to run."""
    for command in (["baseline", "list"], ["baseline", "fit"], ["baseline", "promote", "1"]):
        found = run(*command)
        assert found.exit_code == 1
        assert "moe-watch db upgrade" in found.output
    assert url


def test_a_baseline_from_fit_to_promotion(filled: str) -> None:
    """Fitted from the store, listed, shown, promoted; a second one replaces it."""
    fitted = run("baseline", "fit", "--note", "first")
    assert fitted.exit_code == 0, fitted.output
    assert "baseline 1 of tiny, fitted on 600 requests" in fitted.output
    assert "moe-watch baseline promote 1" in fitted.output
    assert baselines.active(engine.connect(filled)) == {}
    assert run("baseline", "promote", "1").exit_code == 0
    assert "active now" in run("baseline", "fit", "--promote").output
    listed = run("baseline", "list").output
    assert "3 x 8, top-2" in listed
    assert listed.count("active") == 1
    assert "first" in listed
    shown = run("baseline", "show", "1").output
    assert "600, of which" in shown
    assert [a.version for a in baselines.active(engine.connect(filled)).values()] == [2]


def test_normal_quality_is_learned_anew_when_told_so(filled: str) -> None:
    """The answer says how many references went and what makes the next."""
    found = run("baseline", "relearn")
    assert found.exit_code == 0, found.output
    assert "0 references of tiny forgotten: the next 500 scored requests" in found.output
    with Session(engine.connect(filled)) as session:
        assert quality_references.valid_from(session, "tiny") > 0


def test_a_baseline_that_cannot_be_read_is_explained(filled: str) -> None:
    """A backtest against one of another version says so."""
    assert run("baseline", "fit", "--promote").exit_code == 0
    with engine.connect(filled).begin() as connection:
        connection.execute(text("UPDATE baselines SET blob = x'00'"))
    done = run("backtest")
    assert done.exit_code == 1
    assert "cannot be read by this version" in done.output


def test_too_little_data_is_explained(filled: str) -> None:
    """With how many are missing and what to do."""
    found = run("baseline", "fit", "--since", "1s")
    assert found.exit_code == 1
    assert "0 requests are too few" in found.output
    assert "--since" in found.output
    assert filled


def test_several_models_must_be_told_apart(filled: str) -> None:
    """The message lists them; another model's baseline is refused by name."""
    store = engine.connect(filled)
    write(store, some_writes(3, Tap(replica="r1", model="other", experts=16)))
    assert "choose one with --model: other, tiny" in run("baseline", "fit").output
    assert "the store has: other, tiny" in run("baseline", "fit", "--model", "third").output
    assert run("baseline", "fit", "--model", "tiny").exit_code == 0
    found = run("baseline", "promote", "1", "--model", "other")
    assert found.exit_code == 1
    assert "holds for the model it was fitted on alone" in found.output


def test_a_dense_model_has_no_baseline(url: str) -> None:
    """Said at once instead of after reading the store."""
    store = engine.connect(url)
    migrate.upgrade(store)
    write(store, served_models.announcement(Tap().announce(layers=0, experts=0, top_k=0), 1.0))
    assert "is a dense model" in run("baseline", "fit").output


def test_a_wrong_setting_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every command, without a stack trace."""
    monkeypatch.setenv("MOE_WATCH_WINDOW_S", "soon")
    for command in ("serve", "status", "doctor"):
        found = run(command)
        assert found.exit_code == 1
        assert "window_s" in found.output
    assert url


def test_serve_explains_what_it_cannot_bind(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address, endpoint and store, each before anything is running."""
    monkeypatch.setenv("MOE_WATCH_HTTP__HOST", "0.0.0.0")  # noqa: S104
    assert "MOE_WATCH_HTTP__TOKEN" in run("serve").output
    monkeypatch.setenv("MOE_WATCH_HTTP__HOST", "127.0.0.1")
    assert "ALLOW_REMOTE_TAPS" in run("serve", "--endpoint", "tcp://0.0.0.0:5", "--port", "0").output
    owner = engine.own(url)
    assert owner is not None
    assert "another moe-watch" in run("serve", "--port", "0").output
    owner.close()


def test_status_without_a_sidecar_says_what_to_start(url: str) -> None:
    """And fails."""
    found = run("status")
    assert found.exit_code == 1
    assert "moe-watch serve" in found.output
    assert url


def test_doctor_without_anything_says_what_to_do(url: str) -> None:
    """Socket, sidecar and store fail with a remedy each; vLLM's missing address is a warning."""
    found = run("doctor")
    assert found.exit_code == 1
    for said in (
        "warn  vLLM",
        "fail  socket",
        "fail  sidecar",
        "fail  store",
        "moe-watch db upgrade",
        "moe-watch serve",
    ):
        assert said in found.output
    assert found.output.count("->") >= 4
    assert url


def test_doctor_names_an_open_address_and_a_vllm_that_is_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are failures."""
    monkeypatch.setenv("MOE_WATCH_HTTP__HOST", "0.0.0.0")  # noqa: S104
    monkeypatch.setenv("MOE_WATCH_VLLM_URL", "http://127.0.0.1:1/v1")
    found = run("doctor").output
    assert "fail  http" in found
    assert "fail  vLLM: http://127.0.0.1:1 does not answer" in found
    assert url
