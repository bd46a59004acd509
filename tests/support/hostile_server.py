"""One HTTP server that is sidecar, vLLM, dense model and Grafana at once, and puts a hostile text wherever one fits."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import msgspec

from moe_watch.domain import status

HOSTILE = "tiny[/bold][awq] \x1b[2J\u202e\x9b\r\nINJECTED"


def a_replica(text: str) -> status.Replica:
    """Return a replica of which every text is ``text``."""
    tap = status.Tap(False, text, text, 1.0, None, text, text, text)  # noqa: FBT003
    return status.Replica(
        model=text, identity="i", replica=text, layers=2, experts=4, top_k=1, verdict="traffic", reason=text, since=0.0,
        tap=tap, baseline=None, requests=1, routed=1, coverage=0.5, join_ratio=1.0, evidence=0.0, channels={},
        ood=status.Share(0.5, 0.1, 0.9, 3), movers=[], suspects=[status.Suspect(text, 0.001, 0.0)],
        alarms=[status.Alarm(text, 0.0, 0.0, text)],
    )  # fmt: skip


def a_status(text: str) -> status.Status:
    """Return a status of one such replica."""
    store = status.Store("sqlite://", True, 0, 0)  # noqa: FBT003
    return status.Status("0", 9.0, 0.0, text, store, {}, {text: 3}, {text: 2}, 0, [a_replica(text)])


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        named = [{"id": HOSTILE, "uid": HOSTILE, "name": HOSTILE, "type": "prometheus"}]
        found: Any = {"/version": {"version": HOSTILE}, "/v1/models": {"data": named}, "/api/datasources": named}
        if self.path == "/api/v1/status":
            self._say(200, msgspec.json.encode(a_status(HOSTILE)).decode())
        elif self.path in found:
            self._say(200, json.dumps(found[self.path], ensure_ascii=False))
        else:
            self._say(404, HOSTILE)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        events = [{"choices": [{"delta": {"content": HOSTILE}}]}, {"choices": [], "usage": {"completion_tokens": 3}}]
        if b'"stream"' in body:
            self._say(200, "".join(f"data: {json.dumps(event)}\n\n" for event in events))
        else:
            self._say(400, HOSTILE)

    def _say(self, code: int, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def running() -> Iterator[int]:
    """Run it; yields its port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()
