"""The shadow at work over a real store and a fake dense server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from sqlalchemy import delete
from sqlalchemy.orm import Session

from moe_watch.cli.commands import shadow as command
from moe_watch.servers.dense import DenseClient
from moe_watch.settings import DetectSettings, Settings, ShadowSettings
from moe_watch.shadow import worker
from moe_watch.shadow.budget import Breaker
from moe_watch.shadow.judge import Judge
from moe_watch.shadow.sampling import chosen
from moe_watch.shadow.worker import Worker
from moe_watch.store.records import shadows
from moe_watch.store.schema import Request, Shadow
from tests.support import shadow_store
from tests.support.fake_openai import FakeOpenAI


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll often, and keep the log out of the way."""
    monkeypatch.setattr(worker, "_POLL_S", 0.01)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


def settings(**shadow: Any) -> Settings:
    given = {"requests_per_s": 1e6, "tokens_per_s": 1e9, "base_rate": 1.0, **shadow}
    return Settings(shadow=ShadowSettings(**given), detect=DetectSettings())


def work(
    folder: Path,
    server: FakeOpenAI | None,
    *,
    requests: int = 20,
    until: Callable[[dict[int, Shadow]], bool] | None = None,
    judge: FakeOpenAI | None = None,
    **shadow: Any,
) -> dict[int, Shadow]:
    """Run the shadow over ``requests`` new samples until every one has a row, or ``until``; return the rows."""
    store = shadow_store.make(folder)
    with Session(store) as session, session.begin():
        for pk in range(1, requests + 1):
            shadow_store.add_sample(session, pk, ood_p=0.001 if pk % 5 == 0 else 0.5)

    async def run() -> None:
        async with (server or FakeOpenAI()).client() as http, (judge or FakeOpenAI()).client() as judged:
            made = Worker(settings(**shadow), store, DenseClient(http) if server else None, None)
            made.breaker = Breaker(random.Random(0), pause_s=0.01, longest_pause_s=0.02)  # noqa: S311 - jitter
            made.judge = Judge(judged, "judge") if judge else None
            task = asyncio.create_task(made.run())
            done = until or (lambda rows: len(rows) == requests)
            while not done(shadow_store.rows(store)):
                await asyncio.sleep(0.02)
                assert not task.done()
            task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    return shadow_store.rows(store)


def test_every_sample_gets_a_row_and_the_chosen_ones_a_score(tmp_path: Path) -> None:
    """All unusual requests and the hash's share of ordinary ones are replayed, with weights that undo the choice."""
    rows = work(tmp_path, FakeOpenAI(), requests=60, base_rate=0.3)
    for pk, row in rows.items():
        rate = 1.0 if pk % 5 == 0 else 0.3
        assert row.outcome == ("scored" if chosen(f"chatcmpl-{pk}", 0, rate) else "signals")
        assert row.weight == pytest.approx(1 / (0.5 * rate))
        assert row.sample_weight == 2.0


def test_without_a_dense_server_the_signals_remain(tmp_path: Path) -> None:
    """Reference-free signals need no second model."""
    rows = work(tmp_path, None)
    assert {row.outcome for row in rows.values()} == {"signals"}
    assert all(row.defects == {"moe": []} for row in rows.values())


def test_trouble_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers 503 for a while loses no request: each is tried again when the breaker lets it."""
    monkeypatch.setattr(worker, "_TRIES", 10)
    server = FakeOpenAI(fail=7)
    rows = work(tmp_path, server, requests=5, concurrency=1)
    assert {row.outcome for row in rows.values()} == {"scored"}


def test_a_dead_server_ends_in_failed_rows_not_in_a_crash(tmp_path: Path) -> None:
    """After three tries a request is given up, counted as failed, and its signals are kept."""
    rows = work(tmp_path, FakeOpenAI(fail=10**6), requests=3)
    assert {row.outcome for row in rows.values()} == {"failed"}
    assert all("moe" in row.defects for row in rows.values())


def test_a_bug_costs_one_request_and_the_breaker_closes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks unforeseen fails that request; the breaker, were it trying just then, waits for nobody."""
    broken = worker.replay

    async def replay(*given: Any, **more: Any) -> Any:
        if given[2].request_pk <= 6:
            raise ZeroDivisionError
        return await broken(*given, **more)

    monkeypatch.setattr(worker, "replay", replay)
    rows = work(tmp_path, FakeOpenAI(), requests=10, concurrency=1)
    assert [rows[pk].outcome for pk in range(1, 11)] == ["failed"] * 6 + ["scored"] * 4


def test_sidecars_that_share_a_store_look_at_their_own_samples(tmp_path: Path) -> None:
    """The other's are neither replayed twice nor marked as seen."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        for pk in range(1, 21):
            shadow_store.add_sample(session, pk, replica=f"r{pk % 2}")
    server = FakeOpenAI()

    async def run() -> None:
        async with server.client() as http:
            one = Worker(settings(), store, DenseClient(http), None, lambda: {"r1"})
            task = asyncio.create_task(one.run())
            while len(shadow_store.rows(store)) < 10:  # noqa: ASYNC110 - a store has no event
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert set(shadow_store.rows(store)) == set(range(1, 21, 2))
    assert sum(bool(body.get("stream")) for _, body in server.asked) == 10


def test_a_row_that_is_there_already_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shadows on one store may be at the same request: the slower one loses that row alone."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        for pk in range(1, 6):
            shadow_store.add_sample(session, pk)
        session.add(Shadow(request_pk=3, at=0, weight=1, dense_model="quicker", defects={}))
    monkeypatch.setattr(shadows, "save", lambda session, rows: session.add_all(rows))  # as if it came in between
    rows = [Shadow(request_pk=pk, at=0, weight=1, dense_model="slower", defects={}) for pk in range(1, 6)]
    asyncio.run(Worker(settings(), store, None, None)._save(rows))
    found = shadow_store.rows(store)
    assert {pk: row.dense_model for pk, row in found.items()} == {3: "quicker"} | dict.fromkeys((1, 2, 4, 5), "slower")


def test_a_judge_that_refuses_us_is_done_without() -> None:
    """A wrong key for the judge does not end the shadow."""

    async def ask() -> Judge | None:
        return await worker._judge(FakeOpenAI(refuses=True).client(), None)

    assert asyncio.run(ask()) is None


def test_what_ends_the_process_is_not_kept_from_its_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`moe-watch shadow` that fails does not exit as if all were well."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "run", broken)
    given = settings(url="http://dense:8000")
    given.store.url = shadow_store.make(tmp_path).url.render_as_string()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(command._run(given))


def test_the_queue_is_bounded_and_load_is_shed(tmp_path: Path) -> None:
    """With a budget of next to nothing the queue fills to its size, the rest is dropped and said so."""
    until = lambda rows: sum(row.outcome == "dropped" for row in rows.values()) >= 15  # noqa: E731
    rows = work(tmp_path, FakeOpenAI(), requests=30, until=until, queue=8, requests_per_s=0.001, concurrency=1)
    assert sum(row.outcome == "scored" for row in rows.values()) <= 2


def test_a_forgotten_request_gets_no_row(tmp_path: Path) -> None:
    """A request deleted while its replay was under way leaves nothing behind."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        shadow_store.add_sample(session, 1)
        shadow_store.add_sample(session, 2)
    with Session(store) as session, session.begin():
        session.execute(delete(Request).where(Request.id == 1))
    with Session(store) as session, session.begin():
        made = [
            Shadow(request_pk=pk, at=0, weight=1, sample_weight=1, outcome="scored", dense_model="", defects={})
            for pk in (1, 2)
        ]
        assert shadows.save(session, made) == 1
    assert list(shadow_store.rows(store)) == [2]


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    """Requests with a row are not taken again, those without are."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        for pk in (1, 2, 3):
            shadow_store.add_sample(session, pk)
        session.add(Shadow(request_pk=2, at=0, weight=1, dense_model="", defects={}))
    with Session(store) as session:
        assert [p.request_pk for p in shadows.pending(session, shadows.resume(session), 10)] == [1, 3]


def test_a_sample_that_is_committed_after_later_ones_is_looked_at(tmp_path: Path) -> None:
    """Keys are given out before a transaction ends; each sample is looked at once all the same."""
    store = shadow_store.make(tmp_path)
    worker = Worker(Settings(), store, None, None)
    looked_at = []
    for keys in ((1, 4), (2,), (), (3, 5)):
        with Session(store) as session, session.begin():
            for pk in keys:
                shadow_store.add_sample(session, pk)
        looked_at.append([request.request_pk for request in worker._new()])
    assert looked_at == [[1, 4], [2], [], [3, 5]]


def test_canaries_are_not_shadowed(tmp_path: Path) -> None:
    """moe-watch's own prompts say nothing about traffic."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        shadow_store.add_sample(session, 1, canary=True)
    with Session(store) as session:
        assert shadows.pending(session, 0, 10) == []


def test_judge_is_asked_when_there_is_one(tmp_path: Path) -> None:
    """Its preference, if it survives the swap, is in the row."""
    rows = work(tmp_path, FakeOpenAI(), requests=1, judge=FakeOpenAI(verdicts=["B", "A"]))
    assert rows[1].judge == -1


def test_only_the_dense_server_is_ever_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every HTTP request of a running shadow goes to shadow.url: the MoE's server is never touched."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        for pk in range(1, 11):
            shadow_store.add_sample(session, pk)
    app, called = FakeOpenAI().app(), []

    async def handle(request: httpx.Request) -> httpx.Response:
        called.append(request.url.host)
        return await httpx.ASGITransport(app=app).handle_async_request(request)

    def http(url: str, *_: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=url, transport=httpx.MockTransport(handle))

    monkeypatch.setattr(worker, "_http", http)
    given = settings(url="http://dense:8000")
    given.vllm_url = "http://moe:8000"

    async def run() -> None:
        task = asyncio.create_task(worker.run(given, store))
        while len(shadow_store.rows(store)) < 10:  # noqa: ASYNC110 - a store has no event
            await asyncio.sleep(0.02)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert set(called) == {"dense"}
