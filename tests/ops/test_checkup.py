"""The doctor: what is wrong between vLLM and a verdict is found and comes with a remedy."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from moe_watch.domain import status
from moe_watch.metrics import series
from moe_watch.ops import doctor
from moe_watch.ops.doctor import Check
from moe_watch.settings import HttpSettings, Settings, StoreSettings
from moe_watch.store import engine, migrate
from moe_watch.store.records import baselines, served_models
from moe_watch.store.schema import Baseline, Model
from moe_watch.store.write.batch import write
from tests.store.test_store_write import some_writes
from tests.support.frames import Tap


def _replica(**more: object) -> status.Replica:
    tap = status.Tap(True, "on", "", 1.0, 0.1, "0.32.0", "0.1", "v1")  # noqa: FBT003
    values: dict[str, object] = {
        "model": "tiny",
        "identity": "abcdefgh",
        "replica": "r0",
        "layers": 3,
        "experts": 8,
        "top_k": 2,
        "verdict": "healthy",
        "reason": "",
        "since": 0.0,
        "tap": tap,
        "baseline": status.Baseline(1, 0.0, 500),
        "requests": 9,
        "routed": 9,
        "coverage": 1.0,
        "join_ratio": 1.0,
        "ood": status.Share(None, 0.0, 1.0, 0),
        "evidence": 0.0,
        "channels": {},
        "alarms": [],
        "movers": [],
        "suspects": [],
    }
    return status.Replica(**(values | more))  # type: ignore[arg-type]


def _states(checks: Iterator[Check]) -> dict[str, str]:
    found = list(checks)
    assert all(check.remedy for check in found if check.state != "ok")
    return {check.subject: check.state for check in found}


def test_a_tap_in_order_is_ok() -> None:
    """And so is its baseline."""
    assert _states(doctor._tap(_replica())) == {"tap of r0": "ok", "baseline": "ok"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tap": status.Tap(False, "refused", "x", 1.0, 0.0, "", "", "")}, {"tap of r0": "fail", "baseline": "ok"}),  # noqa: FBT003
        ({"tap": status.Tap(True, "on", "", 1.0, -90.0, "", "", "")}, {"tap of r0": "warn", "baseline": "ok"}),  # noqa: FBT003
        ({"coverage": 0.4}, {"tap of r0": "warn", "baseline": "ok"}),
        ({"baseline": None}, {"tap of r0": "ok", "baseline": "warn"}),
        (
            {"tap": status.Tap(False, "dense", "", 1.0, 0.0, "", "", ""), "layers": 0, "baseline": None},  # noqa: FBT003
            {"tap of r0": "warn"},
        ),
    ],
    ids=["refused", "clock", "coverage", "learning", "dense"],
)
def test_what_is_wrong_with_a_tap_is_found(more: dict[str, object], expected: dict[str, str]) -> None:
    """Each with a remedy."""
    assert _states(doctor._tap(_replica(**more))) == expected


def _seen(**more: object) -> status.Status:
    store = status.Store("sqlite://", True, 0, 0)  # noqa: FBT003
    values: dict[str, object] = {"frames_received": {"routing": 99}, "frames_refused": {}, "frames_lost": {}}
    told = status.Status("0", 1.0, 0.0, "ipc://x", store, {}, {}, {}, 0, [_replica()])
    return msgspec.structs.replace(told, **(values | more))


@pytest.mark.parametrize("reason", sorted(series.REFUSAL_REASONS))
def test_whatever_is_refused_is_told_with_what_to_do(reason: str) -> None:
    """A client that hides behind one request id is seen as frames that came late or twice."""
    (check,) = doctor._frames(_seen(frames_refused={reason: 7, "other": 0}))
    assert (check.state, check.finding) == ("warn", f"7 {reason}")
    assert "FramesRefused" in check.remedy or f"{reason}:" in check.remedy
    assert [check.state for check in doctor._frames(_seen())] == ["ok"]


def test_a_model_that_is_not_watched_is_told_with_the_reason() -> None:
    """Too large, or too much beside the others."""
    _, check = doctor._frames(_seen(impossible={"r1": "131072 layers of 1 experts"}))
    assert (check.state, check.subject) == ("fail", "model of r1")
    assert "131072 layers" in check.finding


@pytest.fixture
def vllm() -> Iterator[tuple[str, dict[str, object]]]:
    """Run a server that answers as vLLM does; return its address and its answers."""
    answers: dict[str, object] = {"/version": {"version": "0.32.1"}, "/v1/models": {"data": [{"id": "tiny"}]}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path in answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers.get(self.path)).encode())

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", answers
    server.shutdown()


@pytest.mark.parametrize(
    ("version", "expected"),
    [({"version": "0.32.1"}, "ok"), ({"version": "0.99.0"}, "warn"), (None, "fail"), ([], "fail")],
)
def test_the_version_of_vllm_is_judged(version: object, expected: str, vllm: tuple[str, dict[str, object]]) -> None:
    """The one the tap is made for is ok, another is a warning, and no answer or nonsense a failure."""
    url, answers = vllm
    if version is None:
        del answers["/version"]
    else:
        answers["/version"] = version
    assert _states(doctor._vllm(Settings(vllm_url=url))) == {"vLLM": expected}


def test_an_open_socket_is_a_warning(tmp_path: Path) -> None:
    """A private one is ok, a missing one a failure."""
    path = tmp_path / "tap.sock"
    assert _states(doctor._socket(f"ipc://{path}")) == {"socket": "fail"}
    path.touch(mode=0o600)
    assert _states(doctor._socket(f"ipc://{path}")) == {"socket": "ok"}
    path.chmod(0o666)
    assert _states(doctor._socket(f"ipc://{path}")) == {"socket": "warn"}


def test_a_baseline_of_another_model_is_pointed_out(tmp_path: Path) -> None:
    """After a redeployment the active baseline may be of weights that are gone."""
    settings = Settings(store=StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    store = engine.connect(settings.store.url)
    assert _states(doctor._store(settings)) == {"store": "fail"}
    migrate.upgrade(store)
    write(store, some_writes(0))
    old = served_models.by_name(store)[0]
    _activate(store, old)
    write(store, served_models.announcement(Tap().announce(), 1.0, settings.sidecar))
    assert _states(doctor._store(settings)) == {"store": "ok"}
    write(store, served_models.announcement(Tap().announce(weights="new"), 1.0, settings.sidecar))
    assert _states(doctor._store(settings)) == {"store": "ok", "baseline": "warn"}


def test_a_store_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    """One that an earlier version made, for example."""
    settings = Settings(store=StoreSettings(url=f"sqlite:///{tmp_path}/a.db"))
    migrate.upgrade(engine.connect(settings.store.url))
    (tmp_path / "a.db").chmod(0o644)
    assert [check.state for check in doctor._store(settings)] == ["ok", "warn"]


def _activate(store: Engine, model: Model) -> None:
    row = {"created_at": 1.0, "promoted_at": 1.0, "active": True, "requests": 1, "note": "", "blob": b""}
    with Session(store) as session, session.begin():
        session.add(Baseline(model_id=model.id, version=1, **row))
    assert baselines.active(store)


def test_an_open_address_needs_a_token() -> None:
    """Loopback is ok without one; beyond it the token is readable on the way, unless TLS hides it."""
    guarded, tls = {"host": "0.0.0.0", "token": "x" * 16}, {"tls_cert": Path("c"), "tls_key": Path("k")}  # noqa: S104
    anywhere = "0.0.0.0"  # noqa: S104
    assert _states(doctor._http(Settings())) == {"http": "ok"}
    assert _states(doctor._http(Settings(http=HttpSettings(host=anywhere)))) == {"http": "fail"}
    assert _states(doctor._http(Settings(http=HttpSettings.model_validate(guarded)))) == {"http": "warn"}
    assert _states(doctor._http(Settings(http=HttpSettings.model_validate(guarded | tls)))) == {"http": "ok"}


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("tcp://127.0.0.1:9464", "ok"),
        ("tcp://0.0.0.0:9464", "warn"),
        ("tcp://*:9464", "warn"),
        ("tcp://10.1.2.3:1", "warn"),
    ],
)
def test_frames_from_other_machines_are_a_warning(endpoint: str, expected: str) -> None:
    """They are neither encrypted nor authenticated."""
    assert _states(doctor._socket(endpoint)) == {"socket": expected}
