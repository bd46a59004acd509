"""The shadow at work: takes sampled requests from the store, chooses, replays within the budget, writes what came out.

It reads the store and calls the dense server, never the MoE's. It runs as ``moe-watch shadow`` or as one task inside
``serve``; either way it survives a dense server or a store that is away.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import httpx
import structlog
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from moe_watch.domain import sanitise
from moe_watch.servers.client import RefusedError, ServerError, connect
from moe_watch.servers.dense import Abilities, DenseClient
from moe_watch.settings import Settings
from moe_watch.shadow.budget import Allowance, Breaker
from moe_watch.shadow.judge import Judge
from moe_watch.shadow.replay import cost, replay, unreplayed, unsupported
from moe_watch.shadow.sampling import Rates, chosen
from moe_watch.store.records import shadows
from moe_watch.store.records.shadows import Pending
from moe_watch.store.schema import Shadow

_LOG = structlog.get_logger("moe_watch.shadow")
_POLL_S = 1.0
_BATCH = 500  # sampled requests looked at in one poll
_RESTART_S = 30.0
_TRIES = 3
_UNKNOWN = Abilities(model="", max_model_len=None, scores=False)


async def run(settings: Settings, engine: Engine, replicas: Callable[[], Collection[str]] | None = None) -> None:
    """Shadow until cancelled; without ``shadow.url`` only the signals that need no second model are written.

    ``replicas`` are those whose samples are looked at: sidecars that share a store each look at their own. None: all.
    """
    async with AsyncExitStack() as stack:
        worker = Worker(settings, engine, None, None, replicas)
        if settings.shadow.url:
            http = await stack.enter_async_context(
                _http(settings.shadow.url, settings.shadow.api_key, settings.shadow.timeout_s)
            )
            worker.client = DenseClient(http, settings.shadow.model)
        if settings.shadow.judge_url:
            judge = _http(settings.shadow.judge_url, settings.shadow.judge_api_key, settings.shadow.timeout_s)
            worker.judge = await _judge(await stack.enter_async_context(judge), settings.shadow.judge_model)
        while True:
            try:
                await worker.run()
            except* Exception as errors:  # noqa: BLE001 - a bug of ours must not end the sidecar's other tasks
                _LOG.error("the shadow broke: starting again", pause_s=_RESTART_S, error=sanitise.place_of(errors))
            await asyncio.sleep(_RESTART_S)


def _http(url: str, key: SecretStr | None, timeout_s: float) -> httpx.AsyncClient:
    return connect(url, key, httpx.Timeout(timeout_s, connect=5))


async def _judge(http: httpx.AsyncClient, model: str | None) -> Judge | None:
    try:
        return Judge(http, model or (await DenseClient(http).served())[0])
    except ServerError as error:
        _LOG.warning("the judge does not answer: going on without it", error=str(error))
        return None


@dataclass(frozen=True)
class _Chosen:
    request: Pending
    weight: float


@dataclass(frozen=True)
class _Passed:
    request: Pending
    weight: float
    outcome: str


@dataclass
class Worker:
    """One shadow over one store and one dense server; ``client`` None writes signals only."""

    settings: Settings
    engine: Engine
    client: DenseClient | None
    judge: Judge | None
    replicas: Callable[[], Collection[str]] | None = None  # whose samples are looked at; None: of all
    rates: Rates = field(init=False)
    queue: asyncio.Queue[_Chosen] = field(init=False)
    requests: Allowance = field(init=False)
    tokens: Allowance = field(init=False)
    breaker: Breaker = field(default_factory=lambda: Breaker(random.Random(0)))  # noqa: S311 - jitter
    abilities: Abilities | None = None
    after: int | None = None  # primary key of the last request looked at
    looked_at: set[int] = field(default_factory=set)  # those not far before it

    def __post_init__(self) -> None:
        """Take rates and budgets from the settings."""
        shadow = self.settings.shadow
        self.rates = Rates(shadow.base_rate, shadow.ood_rate, self.settings.detect.ood_alpha)
        self.queue = asyncio.Queue(shadow.queue)
        self.requests = Allowance(shadow.requests_per_s)
        self.tokens = Allowance(shadow.tokens_per_s)

    async def run(self) -> None:
        """Take and replay until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.take())
            for _ in range(self.settings.shadow.concurrency if self.client else 0):
                group.create_task(self.work())

    async def take(self) -> None:
        """Look for new samples every second, or at once while there are more."""
        while True:
            found: list[Pending] = []
            try:
                found = await asyncio.to_thread(self._new)
            except SQLAlchemyError as error:
                _LOG.warning("the store is away: the shadow waits", error=str(error))
            passed = self._choose(found if self.replicas is None else _of(found, self.replicas()))
            await self._save(await asyncio.to_thread(_look_at, passed))
            if len(found) < _BATCH:
                await asyncio.sleep(_POLL_S)

    def _new(self) -> list[Pending]:
        with Session(self.engine) as session:
            if self.after is None:
                self.after = shadows.resume(session)
            found = shadows.pending(session, self.after, _BATCH, self.looked_at)
        keys = {request.request_pk for request in found}
        self.after = max(self.after, *keys, 0)
        oldest = self.after - shadows.LOOK_BACK
        self.looked_at = {key for key in self.looked_at | keys if key > oldest}
        return found

    def _choose(self, found: Sequence[Pending]) -> list[_Passed]:
        """Put the chosen requests in the queue and return the others with the reason."""
        self.rates = self.rates.adapt(self.queue.qsize() / self.queue.maxsize)
        passed = []
        for request in found:
            probability = self.rates.probability(request.ood_p)
            weight = 1 / (request.sample_rate * probability)
            outcome = self._outcome(request, probability)
            if not outcome and not self.queue.full():
                self.queue.put_nowait(_Chosen(request, weight))
            else:
                passed.append(_Passed(request, weight, outcome or "dropped"))
        return passed

    def _outcome(self, request: Pending, probability: float) -> str:
        """Return why ``request`` is not replayed, or nothing."""
        if self.client is None or not chosen(request.request_id, request.choice, probability):
            return "signals"
        return "unsupported" if unsupported(request, self.abilities or _UNKNOWN) else ""

    async def work(self) -> None:
        """Replay one chosen request after the other, within budget and while the server is well."""
        while True:
            taken = await self.queue.get()
            await self._save([await self._replay(taken)])

    async def _replay(self, taken: _Chosen) -> Shadow:
        request, outcome = taken.request, "failed"
        for _ in range(_TRIES):
            await self._turn(request)
            try:
                row = await self._ask(request, taken.weight)
            except RefusedError as error:
                self.breaker.succeeded()
                _LOG.info("not replayed", request_id=request.request_id, error=str(error))
                outcome = "unsupported"
                break
            except ServerError as error:
                self.abilities = None  # it may come back as another
                self.breaker.failed(time.monotonic())
                _LOG.warning("replay failed", request_id=request.request_id, error=str(error))
            except Exception as error:  # noqa: BLE001 - a bug of ours must neither end the others nor leave the breaker waiting
                self.breaker.failed(time.monotonic())
                _LOG.error("replay broke", request_id=request.request_id, error=sanitise.place_of(error))
                break
            else:
                self.breaker.succeeded()
                return row
        return (await asyncio.to_thread(_look_at, [_Passed(request, taken.weight, outcome)]))[0]

    async def _turn(self, request: Pending) -> None:
        """Return when the budget and the breaker let ``request`` go; book what it is expected to take."""
        while True:
            now = time.monotonic()
            pause = max(self.requests.wait(now), self.tokens.wait(now))
            if pause <= 0 and self.breaker.admit(now):
                break
            await asyncio.sleep(max(pause, 0.05))
        self.requests.spend(1, now)
        self.tokens.spend(cost(request), now)

    async def _ask(self, request: Pending, weight: float) -> Shadow:
        if self.client is None:
            raise ServerError("no dense server")
        if self.abilities is None:
            self.abilities = await self.client.probe()
            _LOG.info("dense server", lacks=self.abilities.lacks or "nothing")
        done = await replay(self.client, self.abilities, request, at=time.time(), weight=weight)
        self.tokens.spend(done.tokens - cost(request), time.monotonic())
        if self.judge is not None and done.dense_text:
            with suppress(ServerError):
                done.row.judge = await self.judge.prefers_first(request.prompt, request.output, done.dense_text)
        return done.row

    async def _save(self, rows: Sequence[Shadow]) -> None:
        """Write ``rows``, waiting for a store that is away; nothing new is taken meanwhile."""
        while rows:
            try:
                await asyncio.to_thread(self._write, rows)
            except (OperationalError, InterfaceError) as error:
                _LOG.warning("the store is away: the shadow waits", error=str(error))
                await asyncio.sleep(_POLL_S)
            except SQLAlchemyError as error:
                if len(rows) == 1:
                    _LOG.warning("row not written", request_pk=rows[0].request_pk, error=str(error))
                    return
                for row in rows:  # another shadow may have been quicker with one of them
                    await self._save([row])
                return
            else:
                return

    def _write(self, rows: Sequence[Shadow]) -> None:
        for row in rows:
            row.at = time.time()  # of writing: readers go on from the newest that they saw
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            shadows.save(session, rows)


def _of(found: Sequence[Pending], replicas: Collection[str]) -> list[Pending]:
    return [request for request in found if request.replica in replicas]


def _look_at(passed: Sequence[_Passed]) -> list[Shadow]:
    """Return the rows of requests that are not replayed; milliseconds each for long texts."""
    return [unreplayed(p.request, p.outcome, at=time.time(), weight=p.weight) for p in passed]
