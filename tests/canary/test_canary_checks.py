"""Canaries and the store: references, checks, their list, when the next is due and what is told of a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from moe_watch.canary import check
from moe_watch.canary.rounds import Played
from moe_watch.canary.schedule import Schedule
from moe_watch.cli.commands.canary import command
from moe_watch.detect.canary.replay import Round
from moe_watch.store import engine, migrate
from moe_watch.store.records import canaries, served_models
from moe_watch.store.schema import Alarm, CanaryRun, Event, Model, Request
from tests.support.canary_world import World


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a store at the newest schema with one model and a healthy reference of four rounds."""
    url = f"sqlite:///{tmp_path}/moe-watch.db"
    monkeypatch.setenv("MOE_WATCH_STORE__URL", url)
    monkeypatch.chdir(tmp_path)
    opened = engine.connect(url)
    migrate.upgrade(opened)
    row = Model(identity="i", name="tiny", layers=4, experts=8, top_k=2, first_seen=0.0, detail={"layer_ids": [1, 2]})
    with Session(opened) as session, session.begin():
        session.add(row)
    model_id = served_models.by_name(opened, "tiny")[0].id
    for at, round_ in enumerate(World().reference(4)):
        canaries.save(opened, run(model_id, float(at), round_, reference=True))
    return opened


def run(
    model_id: int, at: float, round_: Round, *, verdict: str = "", reference: bool = False, replica: str = "r"
) -> CanaryRun:
    evidence = {"by_load": {"1": 3.25, "16": 0.5}}
    columns = {"set_version": "v", "engine": "vllm", "load": "idle", "replica": replica, "first_layer": None}
    return CanaryRun(
        model_id=model_id,
        at=at,
        reference=reference,
        verdict=verdict,
        effect=0.0,
        summary="found",
        evidence=evidence,
        blob=round_.to_bytes(),
        **columns,
    )


def test_references_are_kept_by_model_and_set(store: Any) -> None:
    """Four rounds are found again, none of another set, and retired ones stay as history."""
    assert len(canaries.references(store, "tiny", "v")) == 4
    assert canaries.references(store, "tiny", "other") == []
    assert canaries.reference_sets(store, "tiny") == [("v", 4)]
    assert canaries.retire(store, "tiny", "v") == 4
    assert canaries.references(store, "tiny", "v") == []
    assert len(canaries.runs(store)) == 4


def test_the_latest_check_is_no_reference(store: Any) -> None:
    """Rounds of the reference are no checks."""
    assert canaries.latest(store, "tiny") is None
    canaries.save(store, run(1, 9.0, World().round(), verdict="routing"))
    found = canaries.latest(store, "tiny", "r")
    assert found is not None
    assert found.verdict == "routing"
    assert canaries.layer_ids(store, 1) == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run"], "the address of vLLM is not set"),
        (["run", "--url", "http://127.0.0.1:9"], "no OpenAI-compatible server answers"),
        (["run", "--url", "http://127.0.0.1:9", "--loads", "7"], "no load is called 7"),
        (["record", "--engine", "transformers"], "needs --checkpoint"),
        (["record", "--url", "http://127.0.0.1:9", "--prompts", "missing.jsonl"], "cannot be read"),
    ],
)
def test_bad_input_is_answered_with_what_to_do(store: Any, arguments: list[str], complaint: str) -> None:
    """Every mistake on the command line ends with a sentence and no traceback."""
    del store
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 1
    assert complaint in done.output


def test_checks_are_listed(store: Any) -> None:
    """The list shows checks, and the reference when asked for everything."""
    canaries.save(store, run(1, 9.0, World().round(), verdict="routing"))
    listed = CliRunner().invoke(command, ["list"], env={"COLUMNS": "200"}).output
    assert "routing" in listed
    assert "1: 3.2, 16: 0.5" in listed
    assert CliRunner().invoke(command, ["list", "--all"]).output.count("reference") == 4


def happened(store: Any, kind: str, at: float, detail: str = "", *, replica: str = "r") -> None:
    """Write an event of the model."""
    with Session(store) as session, session.begin():
        session.add(Event(at=at, replica=replica, model_id=1, kind=kind, detail=detail))


def finished(store: Any, at: float, *, canary: bool = False) -> None:
    """Write a request."""
    numbers = dict.fromkeys(("choice", "prompt_tokens", "output_tokens", "cached_tokens", "preemptions", "images"), 0)
    words_ = dict.fromkeys(("finish_reason", "domain", "user_hash", "outcome"), "")
    name = f"{at}-{canary}"
    with Session(store) as session, session.begin():
        row = {"request_id": name, "replica": "r", "model_id": 1, "finished_at": at, "canary": canary}
        session.add(Request(**row, **numbers, **words_, corrupted=False))


def played(at: float) -> Played:
    """Return a round of replica r."""
    return Played(World().round(), at, 1, "r", 40, 40, 40, "")


def test_a_fault_is_told_with_what_happened_since_the_canaries_were_last_healthy(store: Any) -> None:
    """The upgrade and the start with the requests since; an event before the healthy replay explains nothing."""
    happened(store, "eplb_rebalance", 5.0)
    canaries.save(store, run(1, 10.0, World().round(), verdict="healthy"))
    assert check._since(store, "tiny", played(20.0)) == ""
    happened(store, "model_changed", 12.0, "vLLM 0.33.0 instead of 0.32.0")
    happened(store, "engine_start", 12.5)
    for at in (11.0, 13.0, 14.0, 15.0):
        finished(store, at)
    finished(store, 16.0, canary=True)
    told = (
        "; since they were last healthy: the change of the configuration (vLLM 0.33.0 instead of 0.32.0) "
        "3 requests ago, the start of the engine 3 requests ago"
    )
    assert check._since(store, "tiny", played(20.0)) == told
    canaries.save(store, run(1, 18.0, World().round(), verdict="healthy", replica="other"))
    happened(store, "eplb_rebalance", 19.0, replica="other")
    assert check._since(store, "tiny", played(20.0)) == told


def test_checks_are_due_at_start_after_a_restart_a_rebalance_and_every_so_often(store: Any) -> None:
    """A balancer that moves experts every minute does not make canaries run every minute."""
    plan = Schedule(every_s=3600.0)
    assert plan.due(store, 101.0) == "start"
    plan.done(run(1, 102.0, World().round(), verdict="healthy"))
    assert plan.due(store, 110.0) == ""
    happened(store, "eplb_rebalance", 120.0)
    assert [plan.due(store, at) for at in (121.0, 703.0)] == ["", "engine"]
    happened(store, "engine_start", 130.0)
    assert plan.due(store, 131.0) == "engine"
    canaries.save(store, run(1, 1000.0, World().round(), verdict="healthy"))
    assert [plan.due(store, at) for at in (4000.0, 4600.0)] == ["", "interval"]
    plan.put_off(4600.0)
    assert [plan.due(store, at) for at in (4601.0, 4661.0)] == ["", "interval"]


def test_what_others_do_in_the_same_store_neither_brings_nor_puts_off_a_check(store: Any) -> None:
    """Two sidecars that share a store each check their own vLLM: at start, and after what happens to it alone."""
    canaries.save(store, run(1, 150.0, World().round(), verdict="healthy", replica="other"))
    plan = Schedule(every_s=3600.0)
    assert plan.due(store, 151.0) == "start"
    plan.done(run(1, 160.0, World().round(), verdict="healthy"))
    happened(store, "engine_start", 170.0, replica="other")
    with Session(store) as session, session.begin():
        times = {"began_at": 170.0, "flagged_at": 171.0, "ended_at": None}
        session.add(Alarm(model_id=1, replica="other", kind="traffic", summary="", evidence={}, **times))
    assert plan.due(store, 180.0) == ""
    canaries.save(store, run(1, 3700.0, World().round(), verdict="healthy", replica="other"))
    assert plan.due(store, 3761.0) == "interval"
