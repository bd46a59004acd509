"""Times of finished requests, from vLLM's own statistics in the API server's process."""

from __future__ import annotations


import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from moe_watch import wire
from moe_watch.tap import ids, switch
from moe_watch.tap.sender import Build, Header


class LatencyLogger(StatLoggerBase):
    """A ``vllm.stat_logger_plugins`` logger that sends a ``Latency`` per finished request, or nothing when off."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        del vllm_config, engine_index
        self._sender = None
        if switch.is_on():
            from moe_watch.tap import frontend

            self._sender = frontend.sender()

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Send the times of the requests that finished in this iteration."""
        del scheduler_stats, mm_cache_stats, engine_idx
        if self._sender is None or iteration_stats is None:
            return
        for finished in iteration_stats.finished_requests:
            self._sender.put(_latency(finished, time.time()))

    def log_engine_initialized(self) -> None:
        """Have nothing to say."""


def _latency(finished: Any, now: float) -> Build:
    def build(header: Header) -> wire.Latency:
        request_id, choice = ids.from_frontend(finished.request_id or "")
        return wire.Latency(
            **header,
            request_id=request_id,
            choice=choice,
            finish_reason=str(finished.finish_reason),
            e2e_s=finished.e2e_latency,
            queue_s=finished.queued_time,
            prefill_s=finished.prefill_time,
            decode_s=finished.decode_time,
            ttft_s=finished.queued_time + finished.prefill_time,
            tpot_s=finished.mean_time_per_output_token,
            prompt_tokens=finished.num_prompt_tokens,
            output_tokens=finished.num_generation_tokens,
            cached_tokens=max(finished.num_cached_tokens, 0),
            preemptions=finished.num_preemptions,
            corrupted=finished.is_corrupted,
            finished_at=now,
        )

    return build
