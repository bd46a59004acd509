"""A real Prometheus, a real Alertmanager and a webhook that keeps what arrives, for the tests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from demo.servers import Server, free_port, start
from tests.support.patience import PATIENCE_S

Rules = Mapping[str, Any]


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Return when ``true()`` is; fail with ``what`` when patience is at its end."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:.0f} s: {what}"
        time.sleep(0.25)


@contextmanager
def prometheus(
    work: Path,
    targets: Mapping[str, Sequence[tuple[str, Mapping[str, str]]]],
    rules: Rules | None = None,
    alertmanager: str | None = None,
) -> Iterator[str]:
    """Run Prometheus with a second between scrapes; ``targets`` are (host:port, labels) by job. Give its URL."""
    work.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [at], "labels": dict(labels)} for at, labels in hosts]}
            for job, hosts in targets.items()
        ],
    }
    if rules is not None:
        (work / "rules.yml").write_text(yaml.safe_dump(rules))
        config["rule_files"] = ["rules.yml"]
    if alertmanager is not None:
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
    (work / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={work}/prometheus.yml",
        f"--storage.tsdb.path={work}/data",
        f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage",
    ]
    with _running(start("prometheus", command, url=f"http://{address}", work=work, env={})) as url:
        yield url


@contextmanager
def alertmanager(work: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Run Alertmanager; give its ``host:port``."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "alertmanager.yml").write_text(yaml.safe_dump(dict(config)))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus-alertmanager",
        f"--config.file={work}/alertmanager.yml",
        f"--storage.path={work}/data",
        f"--web.listen-address={address}",
        "--cluster.listen-address=",
    ]
    with _running(start("alertmanager", command, url=f"http://{address}", work=work, env={})):
        yield address


@contextmanager
def _running(server: Server) -> Iterator[str]:
    try:
        server.wait_ready("/-/ready", 30)
        yield server.url
    finally:
        server.stop()


def ask(url: str, expr: str, *, instant: bool) -> list[dict[str, Any]]:
    """Return the series that a panel would get: the latest values, or the last minute in steps of a second."""
    if instant:
        answer = httpx.get(f"{url}/api/v1/query", params={"query": expr}, timeout=PATIENCE_S)
    else:
        now = time.time()
        span = {"query": expr, "start": now - 60, "end": now, "step": 1}
        answer = httpx.get(f"{url}/api/v1/query_range", params=span, timeout=PATIENCE_S)
    body = answer.json()
    assert body["status"] == "success", f"{expr}: {body}"
    found: list[dict[str, Any]] = body["data"]["result"]
    return found


def has_numbers(series: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether any value of any series is a number."""
    points = [point for one in series for point in (one["values"] if "values" in one else [one["value"]])]
    return any(value != "NaN" for _, value in points)


def wait_for_numbers(url: str, expr: str, *, instant: bool) -> list[dict[str, Any]]:
    """Return the series that a panel gets once there are numbers in them.

    On a busy machine a scrape may take longer than it is given: until the next one, every series is stale.
    """
    found: list[dict[str, Any]] = []

    def arrived() -> bool:
        found[:] = ask(url, expr, instant=instant)
        return has_numbers(found)

    wait_until(arrived, expr)
    return found


@dataclass
class Webhook:
    """Notifications as they came: (path, body)."""

    url: str = ""
    arrived: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, path: str = "") -> list[dict[str, Any]]:
        """Return every alert of every notification below ``path``."""
        return [alert for at, body in list(self.arrived) if at.startswith(path) for alert in body["alerts"]]

    def names(self, status: str, path: str = "") -> set[str]:
        """Return the names of alerts that arrived as firing or resolved."""
        return {alert["labels"]["alertname"] for alert in self.alerts(path) if alert["status"] == status}


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Listen on a free port and keep what is posted."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hook.arrived.append((self.path, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            del arguments

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
