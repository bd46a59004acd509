"""Times of finished requests, from vLLM's own statistics, in the API server's process."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import StatLoggerBase

from moe_watch.tap import enabled

if TYPE_CHECKING:
    from moe_watch import wire
    from moe_watch.tap.send.sender import Build, Header, Sender

log = logging.getLogger("moe_watch.tap")


class LatencyLogger(StatLoggerBase):
    """A logger of ``vllm.stat_logger_plugins``: sends a ``Latency`` per finished request, or does nothing while off."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del vllm_config, engine_index
        self._sender: Sender | None = None
        try:
            if enabled.is_on():
                from moe_watch.tap.api import api_sender

                self._sender = api_sender.sender()
        except Exception:
            log.exception("moe-watch latency logger could not start; serving goes on")

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Send the times of the requests that finished in this iteration."""
        del scheduler_stats, mm_cache_stats, engine_idx
        sender = self._sender
        if sender is None or iteration_stats is None or sender.status.state != "on":
            return
        try:
            for finished in iteration_stats.finished_requests:
                sender.put(latency(finished, time.time()))
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            sender.give_up("latency", error)

    def log_engine_initialized(self) -> None:
        """Have nothing to say."""


def latency(finished: Any, now: float) -> Build:
    """Return the making of the frame of ``vllm.v1.metrics.stats.FinishedRequestStats``.

    The first token's time is what is left of the whole without decoding: unlike queue plus prefill it has in it what
    the API server's process does.
    """
    from moe_watch import wire
    from moe_watch.tap.send import ids

    def build(header: Header) -> wire.Latency:
        request_id, choice = ids.from_frontend(finished.request_id or "")
        return wire.Latency(
            **header,
            request_id=request_id,
            choice=choice,
            finish_reason=str(finished.finish_reason)[:64],
            e2e_s=finished.e2e_latency,
            queue_s=finished.queued_time,
            prefill_s=finished.prefill_time,
            decode_s=finished.decode_time,
            ttft_s=max(finished.e2e_latency - finished.decode_time, 0.0),
            tpot_s=finished.mean_time_per_output_token,
            prompt_tokens=finished.num_prompt_tokens,
            output_tokens=finished.num_generation_tokens,
            cached_tokens=max(finished.num_cached_tokens, 0),
            preemptions=finished.num_preemptions,
            corrupted=finished.is_corrupted,
            finished_at=now,
        )

    return build
