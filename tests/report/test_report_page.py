"""The sidecar's page: the report of the last hour, with headers that make it safe to serve."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from moe_watch.domain import status
from moe_watch.report.render import page
from moe_watch.settings import Settings
from moe_watch.store import engine as engines
from tests.support import store_factory
from tests.support.store_factory import UNTIL


def a_status(verdict: str, reason: str) -> status.Status:
    """Return a status of one replica."""
    tap = status.Tap(
        up=True, state="on", reason="", age_s=1.0, clock_skew_s=0.0, vllm_version="", tap_version="", runner=""
    )
    replica = status.Replica(
        model="<i>model</i>", identity="x", replica="gpu-a", layers=6, experts=16, top_k=4, verdict=verdict,
        reason=reason, since=0.0, tap=tap, baseline=None, requests=1, routed=1, coverage=1.0, join_ratio=1.0,
        ood=status.Share(0.0, 0.0, 1.0, 1), evidence=0.0, channels={}, alarms=[], movers=[], suspects=[],
    )  # fmt: skip
    store = status.Store("sqlite://", up=True, bytes=0, spool_bytes=0)
    return status.Status("0", 0.0, 0.0, "ipc://x", store, {}, {}, {}, 0, [replica])


def client(store_path: Path, told: status.Status) -> TestClient:
    """Return a client of an application with the page."""

    async def now() -> status.Status:
        return told

    made = engines.connect(f"sqlite:///{store_path}")
    return TestClient(Starlette(routes=page.routes(made, Settings(), now)))


def test_the_last_hour_is_shown() -> None:
    """The page is the report over an hour, which renews itself."""
    body = page.render(store_factory.shared(), Settings(), UNTIL).decode()
    assert "review of 60\u202fmin" in body or "review of 1\u202fh" in body
    assert '<meta http-equiv="refresh" content="30">' in body
    assert "Traffic is unlike the baseline" in body


def test_the_page_says_what_the_sidecar_says_now(tmp_path: Path) -> None:
    """Each replica's verdict of this moment stands over the report, its text escaped."""
    store_factory.make(tmp_path / "now.db", store_factory.Story(days=0.0))
    answer = client(tmp_path / "now.db", a_status("blind", "no <routing>")).get("/")
    assert answer.status_code == 200
    assert "no &lt;routing&gt;" in answer.text
    assert "&lt;i&gt;model&lt;/i&gt;" in answer.text
    assert "Nothing was recorded in this period" in answer.text
    assert "moe-watch doctor" in answer.text


def test_the_headers_forbid_everything_but_the_page_itself(tmp_path: Path) -> None:
    """The policy is in the headers too, with framing forbidden, and nothing is cached."""
    store_factory.make(tmp_path / "now.db", store_factory.Story(days=0.0))
    headers = client(tmp_path / "now.db", a_status("idle", "")).get("/").headers
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_many_viewers_cost_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look at it, the page is made at most every ten seconds."""
    store_factory.make(tmp_path / "now.db", store_factory.Story(days=0.0))
    made = []
    monkeypatch.setattr(page, "render", lambda *a: made.append(a) or b"page")
    viewer = client(tmp_path / "now.db", a_status("idle", ""))
    assert {viewer.get("/").text for _ in range(5)} == {"page"}
    assert len(made) == 1


def test_a_store_that_is_away_is_said_plainly(tmp_path: Path) -> None:
    """Without its tables the page answers 503 instead of a traceback."""
    answer = client(tmp_path / "empty.db", a_status("idle", "")).get("/")
    assert answer.status_code == 503
    assert "the store does not answer" in answer.text
