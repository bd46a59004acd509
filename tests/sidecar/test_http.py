"""HTTP: probes, metrics, status and matrix, behind the token where there is one."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from moe_watch.domain.status import Matrix, Status, Store
from moe_watch.metrics import prometheus, series
from moe_watch.metrics.board import Board
from moe_watch.settings import HttpSettings, Settings
from moe_watch.sidecar import http
from moe_watch.sidecar.http import BindError, listen
from moe_watch.store import engine

Make = Callable[..., TestClient]
SESAME = "sesame"
ANYWHERE = "0.0.0.0"  # noqa: S104


@pytest.fixture
def client(tmp_path: Path) -> Make:
    """Return a maker of clients of an application with given HTTP settings."""

    def make(*, ready: str = "", **settings: object) -> TestClient:
        board = Board()
        board.set(series.OOD_RATIO, 0.5, "m", "r")

        async def status() -> Status:
            return Status("0", 1.0, 0.0, "ipc://x", Store("sqlite://", True, 0, 0), {}, {}, {}, 0, [])  # noqa: FBT003

        async def matrix(replica: str) -> Matrix | None:
            return Matrix("m", "r", [0], 1, [[1.0]], None) if replica == "r" else None

        source = http.Source(
            Settings(http=HttpSettings(**settings)),  # type: ignore[arg-type]
            engine.connect(f"sqlite:///{tmp_path}/a.db"),
            prometheus.registry(board),
            status,
            matrix,
            lambda: ready,
        )
        return TestClient(http.app(source), base_url="http://localhost")

    return make


def test_the_probes_say_what_they_are_asked(client: Make) -> None:
    """Alive is not ready."""
    assert client().get("/healthz").status_code == 200
    assert client().get("/readyz").status_code == 200
    answer = client(ready="the store is away").get("/readyz")
    assert (answer.status_code, answer.text) == (503, "the store is away\n")


def test_metrics_are_negotiated(client: Make) -> None:
    """Text by default, OpenMetrics when asked for, zipped when that is accepted."""
    plain = client().get("/metrics", headers={"accept-encoding": "identity"})
    assert 'moe_watch_ood_ratio{model="m",replica="r"} 0.5' in plain.text
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    openmetrics = client().get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
    with client().stream("GET", "/metrics", headers={"accept-encoding": "gzip"}) as zipped:
        assert zipped.headers["content-encoding"] == "gzip"
        assert b"moe_watch_ood_ratio" in gzip.decompress(b"".join(zipped.iter_raw()))


def test_status_and_matrix_are_json(client: Make) -> None:
    """An unknown replica is answered with the known ones."""
    assert client().get("/api/v1/status").json()["endpoint"] == "ipc://x"
    assert client().get("/api/v1/matrix?replica=r").json()["share"] == [[1.0]]
    missing = client().get("/api/v1/matrix?replica=x")
    assert (missing.status_code, missing.json()["replicas"]) == (404, [])


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/status", "/api/v1/matrix", "/", "/nowhere"])
def test_the_token_guards_everything_but_the_probes(client: Make, path: str) -> None:
    """Without it, with a wrong one or in another scheme there is nothing but 401, even for paths that do not exist."""
    guarded = client(token=SESAME)
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic sesame"},
        {"authorization": "\xff"},
    ):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        assert guarded.get(path, headers=encoded).status_code == 401
    assert guarded.get(path, headers={"authorization": "Bearer sesame"}).status_code != 401
    assert guarded.get("/healthz").status_code == guarded.get("/readyz").status_code == 200


def test_metrics_can_be_left_open(client: Make) -> None:
    """For a Prometheus that has no token; nothing else opens with it."""
    opened = client(token=SESAME, metrics_open=True)
    assert opened.get("/metrics").status_code == 200
    assert opened.get("/api/v1/status").status_code == 401


@pytest.mark.parametrize("path", ["/", "/api/v1/status", "/api/v1/matrix?replica=r", "/nowhere"])
def test_without_a_token_no_page_of_another_name_can_read(client: Make, path: str) -> None:
    """A web page whose name points at loopback (DNS rebinding) gets 421, whatever port or address it names."""
    for host in (
        "evil.example",
        "evil.example:9465",
        "localhost.evil.example",
        "10.0.0.7",
        "[fe80::1]:9465",
        "",
        "a b",
    ):
        assert client().get(path, headers={"host": host}).status_code == 421
    for host in ("localhost", "LOCALHOST:9465", "127.0.0.1:9465", "127.8.9.1", "[::1]:9465"):
        assert client().get(path, headers={"host": host}).status_code != 421
    assert client(hosts=("Proxy.example",)).get(path, headers={"host": "proxy.example:443"}).status_code != 421


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_scrapes_and_probes_are_answered_under_any_name(client: Make, path: str) -> None:
    """Prometheus asks by the name of a service, a kubelet by the address of a pod."""
    for host in ("sidecar:9465", "10.0.0.7:9465"):
        assert client().get(path, headers={"host": host}).status_code == 200


def test_with_a_token_any_name_will_do(client: Make) -> None:
    """No page of elsewhere has the token."""
    headers = {"host": "moe.example", "authorization": "Bearer sesame"}
    assert client(token=SESAME).get("/api/v1/status", headers=headers).status_code == 200


def test_beyond_loopback_needs_a_token() -> None:
    """The message says what to set."""
    with pytest.raises(BindError, match="MOE_WATCH_HTTP__TOKEN"):
        listen(HttpSettings(host=ANYWHERE, port=0))
    listen(HttpSettings(host=ANYWHERE, port=0, token=SESAME)).close()


def test_a_taken_port_is_explained() -> None:
    """Instead of a stack trace of the server."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BindError, match="Address already in use"):
        listen(HttpSettings(port=taken.getsockname()[1]))
