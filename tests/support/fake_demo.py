"""A process that answers as vLLM and as the sidecar do: ``python fake_demo.py PORT [AFTER WHAT]``.

After so many answers it answers with another code, or ends with code 7.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from moe_watch.domain import status

PORT = int(sys.argv[1])
AFTER, WHAT = (int(sys.argv[2]), sys.argv[3]) if len(sys.argv) > 3 else (1 << 30, "")
ANSWER = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m"}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}


def healthy() -> bytes:
    """Return the status of one healthy replica that has judged everything."""
    tap = status.Tap(True, "on", "", 1.0, None, "0.32.0", "0", "v1")  # noqa: FBT003
    replica = status.Replica(
        model="m", identity="i", replica="demo", layers=2, experts=4, top_k=1, verdict="healthy", reason="", since=0.0,
        tap=tap, baseline=status.Baseline(1, 0.0, 900), requests=9999, routed=9999, coverage=1.0, join_ratio=1.0,
        evidence=0.0, channels={}, ood=status.Share(0.0, 0.0, 0.1, 300), movers=[], suspects=[], alarms=[],
    )  # fmt: skip
    store = status.Store("sqlite://", True, 0, 0)  # noqa: FBT003
    return msgspec.json.encode(status.Status("0", time.time(), 0.0, "ipc://x", store, {}, {}, {}, 0, [replica]))


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    asked = itertools.count(1)

    def do_GET(self) -> None:
        late = next(self.asked) > AFTER
        if late and WHAT == "end":
            print("the end of the fake", flush=True)  # noqa: T201 - its log
            os._exit(7)
        self.answer(int(WHAT) if late else 200, b"Internal Server Error" if late else healthy())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if WHAT == "end" and next(self.asked) > AFTER:
            os._exit(7)
        time.sleep(0.02)
        self.answer(200, json.dumps({**ANSWER, "choices": [CHOICE]}).encode())

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
