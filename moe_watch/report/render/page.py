"""The sidecar's own page at ``/``: the same report over the last hour, for teams without Grafana and for the demo."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from moe_watch.domain.status import Replica, Status
from moe_watch.report.build.gather import gather
from moe_watch.report.data.types import Period
from moe_watch.report.render import as_html
from moe_watch.report.render.as_html import Now
from moe_watch.report.say import location
from moe_watch.settings import Settings

HOUR_S: Final = 3600.0
REFRESH_S: Final = 30
_FRESH_S: Final = 10.0  # a page is made at most this often, however many look at it
_TONES: Final = {"healthy": "calm", "learning": "unknown", "idle": "unknown", "traffic": "warn"}
_NOTHING: Final = (
    "No request finished in the last hour, or none reached the sidecar: moe-watch doctor says what to check. A report "
    "over a longer time: moe-watch report --since 7d."
)


@dataclass
class _Made:
    """The page as it was made last."""

    at: float
    body: bytes


def routes(engine: Engine, settings: Settings, status: Callable[[], Awaitable[Status]]) -> list[Route]:
    """Return the route of the page."""
    lock = asyncio.Lock()
    made = _Made(float("-inf"), b"")

    async def page(_: Request) -> Response:
        async with lock:
            if time.monotonic() - made.at >= _FRESH_S:
                now = lines(await status())
                try:
                    made.body = await run_in_threadpool(render, engine, settings, time.time(), now)
                except SQLAlchemyError:
                    return PlainTextResponse("the store does not answer: see /api/v1/status\n", 503)
                made.at = time.monotonic()
        return HTMLResponse(made.body, headers=headers())

    return [Route("/", page)]


def render(engine: Engine, settings: Settings, now: float, lines: tuple[Now, ...] = ()) -> bytes:
    """Return the page of the hour before ``now``; takes some 100 ms, so call it off the event loop."""
    report = gather(engine, settings, Period(now - HOUR_S, now), now=now)
    return as_html.render(report, nothing=_NOTHING, refresh=REFRESH_S, now=lines).encode("utf-8", "replace")


def lines(status: Status) -> tuple[Now, ...]:
    """Return what the sidecar says of each replica at this moment, and where its alarms are as far as that is known."""
    return tuple(
        Now(one.replica, one.model, _TONES.get(one.verdict, "bad"), one.verdict, ". ".join([one.reason, *_where(one)]))
        for one in status.replicas
    )


def _where(replica: Replica) -> list[str]:
    known = [(alarm.where, alarm.kind) for alarm in replica.alarms]
    return [sentence for where, kind in known if where is not None for sentence in location.where(where, kind)]


def headers() -> dict[str, str]:
    """Return the headers that make the page safe to serve."""
    return {
        "Content-Security-Policy": f"{as_html.policy()}; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
