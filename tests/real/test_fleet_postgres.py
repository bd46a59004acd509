"""Fifty replicas of two models, two sidecars, one Postgres: the bad node is found, and everything adds up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import zmq
from sqlalchemy import Engine, func, select

from demo import servers
from moe_watch import wire
from moe_watch.fleet import siblings
from moe_watch.servers.prometheus_text import samples
from moe_watch.store import engine, schema
from moe_watch.store.records import served_models, windows
from tests.real.support.monitoring import wait_until
from tests.support.frames import Tap
from tests.support.patience import PATIENCE_S
from tests.support.postgres import Postgres

pytestmark = pytest.mark.real
REPLICAS, BAD = 50, "vllm-07"
WINDOW_S = 3.0
A_WINDOW = 40  # requests of a replica


class Node:
    """One replica: it sends routing alone, drawn from a pool; a bad node swaps two experts of layer 1."""

    def __init__(self, number: int) -> None:
        self.name, self.model = f"vllm-{number:02d}", ("even", "odd")[number % 2]
        self.tap = Tap(self.name, self.model, layers=3, experts=8, top_k=2)
        self.random = np.random.default_rng(number)
        self.first = wire.Model(**{f: getattr(MODEL, f) for f in MODEL.__struct_fields__} | self._head())
        self.counts = POOL.copy()
        if self.name == BAD:
            use = POOL.sum((0, 1))[1]
            pair = [int(use.argmax()), int(use.argmin())]
            self.counts[:, :, 1, pair] = self.counts[:, :, 1, pair[::-1]]
        self.packed = [[wire.pack_counts(part) for part in one] for one in self.counts]

    def _head(self) -> dict[str, Any]:
        return {**self.tap.engine(), "model": self.model}

    def request(self, number: int) -> tuple[wire.Routing, np.ndarray]:
        """Return the frame of one request, and its counts ``[layers, experts]``."""
        at = int(self.random.integers(len(POOL)))
        prompt, decode = self.packed[at]
        frame = wire.Routing(
            **self._head(), request_id=f"cmpl-{self.name}-{number}", layers=3, experts=8, top_k=2, prompt=prompt,
            decode=decode, prompt_tokens=24, prompt_routed=24, decode_routed=8, finished_at=time.time(),
        )  # fmt: skip
        return frame, self.counts[at].sum(0)


def _pool(n: int = 500) -> np.ndarray:
    """Return counts ``[n, 2, layers, experts]`` of requests of 32 tokens."""
    tap, drawn = Tap(layers=3, experts=8, top_k=2), []
    for _ in range(n):
        routing = tap.routing("x", tokens=32)
        drawn.append([wire.unpack_counts(part, 3, 8) for part in (routing.prompt, routing.decode)])
    return np.array(drawn)


MODEL, POOL = Tap().announce(), _pool()


@dataclass
class Fleet:
    """What was sent, and the running parts."""

    store: Engine
    sidecars: list[servers.Server]
    sent: Counter[str] = field(default_factory=Counter)  # requests by model
    choices: dict[str, np.ndarray] = field(default_factory=dict)  # by model [layers, experts]

    def replicas(self) -> list[dict[str, Any]]:
        """Return what both sidecars say of their replicas."""
        return [
            one for s in self.sidecars for one in httpx.get(f"{s.url}/api/v1/status", timeout=30).json()["replicas"]
        ]

    def flagged(self) -> set[str]:
        """Return the replicas with an open alarm that they differ."""
        return {one["replica"] for one in self.replicas() if any(e["kind"] == "replica" for e in one["alarms"])}


def send(running: Fleet, nodes: list[Node], sockets: list[zmq.Socket[bytes]], seconds: float) -> None:
    """Send requests of all replicas at an even pace, each to one of the sidecars."""
    started, done = time.monotonic(), 0
    rate = REPLICAS * A_WINDOW / WINDOW_S
    while (now := time.monotonic() - started) < seconds:
        while done < now * rate:
            at = done % REPLICAS
            node = nodes[at]
            frame, counts = node.request(running.sent.total())
            sockets[at % 4 // 2].send(wire.encode(frame))
            running.choices[node.model] = running.choices.get(node.model, np.zeros((3, 8), np.int64)) + counts
            running.sent[node.model] += 1
            done += 1
        time.sleep(0.01)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, postgres_server: Postgres) -> Iterator[Fleet]:
    """Serve until the bad node is flagged; stop the sidecars in order, so that all is written."""
    work = tmp_path_factory.mktemp("fleet")
    url = postgres_server.url("fleet")
    env = {
        "OMP_NUM_THREADS": "1",
        "MOE_WATCH_STORE__URL": url,
        "MOE_WATCH_WINDOW_S": str(WINDOW_S),
        "MOE_WATCH_JOIN_TIMEOUT_S": "1",
        "MOE_WATCH_DETECT__AVERAGE_RUN_LENGTH": "1000",
    }
    context = zmq.Context()
    sidecars, sockets = [], []
    for name in ("a", "b"):
        endpoint = f"ipc://{work}/{name}.sock"
        own = {"MOE_WATCH_ENDPOINT": endpoint, "MOE_WATCH_SPOOL_DIR": f"{work}/{name}.spool"}
        sidecars.append(servers.start_sidecar(work / name, env=env | own, name=name))
        sidecars[-1].wait_ready("/readyz", 120)
        sockets.append(context.socket(zmq.PUSH))
        sockets[-1].connect(endpoint)
    running = Fleet(engine.connect(url), sidecars)
    nodes = [Node(number) for number in range(REPLICAS)]
    for number, node in enumerate(nodes):
        sockets[number % 4 // 2].send(wire.encode(node.first))
    deadline = time.monotonic() + PATIENCE_S
    while not running.flagged() and time.monotonic() < deadline:
        for number, node in enumerate(nodes):
            sockets[number % 4 // 2].send(wire.encode(node.tap.health()))
        send(running, nodes, sockets, WINDOW_S)
    wait_until(lambda: sum(one["requests"] for one in running.replicas()) == running.sent.total(), "all is judged")
    yield running
    context.destroy(linger=0)
    for server in sidecars:
        server.stop()


def identity(running: Fleet, model: str) -> str:
    return served_models.by_name(running.store, model)[0].identity


def test_the_bad_node_is_flagged_and_no_other(story: Fleet) -> None:
    """Its own sidecar says so, with the layer, and names the deployment; 49 others are not blamed."""
    assert story.flagged() == {BAD}

    def bad() -> dict[str, Any]:
        return next(one for one in story.replicas() if one["replica"] == BAD)

    wait_until(lambda: bad()["verdict"] == "deployment", "the verdict follows the alarm")
    assert "routes differently than its 24 siblings, most in layer 1" in bad()["reason"]


def test_each_model_is_compared_with_its_own(story: Fleet) -> None:
    """Twenty-five standings each, whichever sidecar watches the replica; evidence of the others is far from 1."""
    for model in ("even", "odd"):
        state = siblings.read(story.store, identity(story, model))
        assert len(state.standings) == REPLICAS / 2
        assert all(one.evidence < 1 for name, one in state.standings.items() if name != BAD)


def test_the_alert_has_its_series(story: Fleet) -> None:
    """One series a replica, 1 for the bad node alone."""
    found = [
        one
        for server in story.sidecars
        for one in samples(httpx.get(f"{server.url}/metrics", timeout=30).text, "moe_watch_replica_deviates")
    ]
    assert len(found) == REPLICAS
    assert [one.labels["replica"] for one in found if one.value == 1] == [BAD]


def test_merged_is_pooled(story: Fleet) -> None:
    """Windows of all replicas of a model add up to every choice of every request that was sent."""
    for server in story.sidecars:
        server.stop()
    for model, sent in story.sent.items():
        row = served_models.by_name(story.store, model)[0]
        total = windows.pooled(story.store, row, 0.0, time.time())
        assert total.requests == total.routed_requests == sent
        assert (total.counts.sum(0) == story.choices[model]).all()
        with story.store.connect() as connection:
            rows = select(func.count()).select_from(schema.Request).where(schema.Request.model_id == row.id)
            assert connection.scalar(rows) == sent
