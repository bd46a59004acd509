"""The sidecar's own checks: at start, after the engine started anew, when traffic drifts, and every so often.

``run`` is one asyncio task; it needs ``vllm_url`` and a reference (``moe-watch canary record``), and waits for both.
The verdicts go to the store, where the sidecar finds them like those of ``moe-watch canary run``.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.canary import marks, prompts, replay
from moe_watch.canary.check import Checked, NotChecked, check, loads_by_name
from moe_watch.servers.client import ServerError
from moe_watch.settings import Settings
from moe_watch.store.records import alarms as stored_alarms
from moe_watch.store.records import canaries, events
from moe_watch.store.schema import CanaryRun

_POLL_S: Final = 5.0
_REBALANCE_S: Final = 600.0  # a balancer may move experts every minute
_RETRY_S: Final = 60.0  # after a server that does not answer, or one without a reference

_log = structlog.get_logger()


@dataclass
class Schedule:
    """Decides when the next check is due; times are seconds since the epoch.

    Others may write to the same store: what they check and what happens to their replicas is none of its business.
    """

    every_s: float
    _last: CanaryRun | None = None  # of its own: it says which replica that is
    _not_before: float = 0.0

    def due(self, engine: Engine, now: float) -> str:
        """Return why a check is due, empty when none is."""
        if now < self._not_before:
            return ""
        if self._last is None:
            return "start"
        replica = self._last.replica
        latest = canaries.latest(engine, replica=replica or None)  # by hand, too
        at = max(self._last.at, latest.at if latest is not None else 0.0)
        kinds = {event.kind for event in events.between(engine, at, now) if replica in {"", event.replica}}
        if "engine_start" in kinds or ("eplb_rebalance" in kinds and now - at >= _REBALANCE_S):
            return "engine"
        alarms = [one for one in stored_alarms.between(engine, at, now) if one.kind == "traffic"]
        if any(alarm.flagged_at > at and replica in {"", alarm.replica} for alarm in alarms):
            return "drift"
        return "interval" if now - at >= self.every_s else ""

    def done(self, run: CanaryRun) -> None:
        """Take note of a check of its own."""
        self._last = run

    def put_off(self, now: float) -> None:
        """Try again a little later, because the server or the reference is not there."""
        self._not_before = now + _RETRY_S


async def run(settings: Settings, engine: Engine) -> None:
    """Check whenever one is due, until cancelled; whatever fails is logged and tried again."""
    if settings.vllm_url is None:
        return
    schedule = Schedule(settings.canary.every_s)
    while True:
        await asyncio.sleep(_POLL_S)
        try:
            why = await asyncio.to_thread(schedule.due, engine, time.time())
            if why:
                done = await once(settings, engine)
                schedule.done(done.run)
                _log.info("canaries replayed", why=why, verdict=done.judgement.verdict, summary=done.run.summary)
        except (NotChecked, ServerError, prompts.BadCanarySet) as error:
            schedule.put_off(time.time())
            _log.info("canaries not replayed", reason=str(error))
        except SQLAlchemyError:
            schedule.put_off(time.time())
            _log.warning("canaries not replayed: the store is away")
        except Exception:  # noqa: BLE001 - a canary must not end the sidecar
            schedule.put_off(time.time())
            _log.exception("canaries failed")


async def once(settings: Settings, engine: Engine) -> Checked:
    """Replay one round as the settings say and judge it; raises what ``probe`` and ``check`` raise."""
    if settings.vllm_url is None:
        raise NotChecked("the address of vLLM is not set: MOE_WATCH_VLLM_URL")
    wanted = prompts.load(settings.canary.prompts)
    key = await asyncio.to_thread(marks.secret, settings.canary, engine)
    async with replay.client(settings.vllm_url, settings.vllm_api_key, key) as http:
        server = await replay.probe(http, wanted)
        loads = loads_by_name(settings.canary.loads)
        return await check(http, server, engine, loads=loads, error=settings.canary.error)
