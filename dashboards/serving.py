"""Speed and memory, mostly vLLM's own metrics: what routing trouble feels like from outside."""

from __future__ import annotations

from typing import Any, Final

from moe_watch.provision import thresholds as limit

from .frame import Row, build
from .panels import MOE_WATCH, VLLM, Limit, Query, number, series
from .queries import context_share_over_budget, quantile

UID: Final = "moe-watch-serving"
_ALLOWED: Final = 1 - limit.TTFT_OBJECTIVE_RATIO
_WHERE: Final = "{{replica}}{{instance}}"  # vLLM's series have a replica only where the scrape configuration sets it


def content() -> dict[str, Any]:
    """Return the dashboard's JSON."""
    return build(
        UID,
        "Serving",
        "Latency by context, speed against the dense model, memory: vLLM's own metrics beside moe-watch's.",
        [
            Row("Time to first token", _first_token()),
            Row("Speed", _speed()),
            Row("Memory and queues", _memory()),
        ],
    )


def _first_token() -> list[Any]:
    ttft = "moe_watch_time_to_first_token_seconds"
    long = "64k|128k|longer"
    share = "moe_watch_ttft_requests_total"
    return [
        series(
            "95th percentile by context",
            "Time to first token by prompt length, from moe-watch: vLLM's histogram does not know the length.",
            [Query(quantile(0.95, ttft, MOE_WATCH, "context"), "{{context}}")],
            "s",
        ),
        series(
            "Over budget by context",
            "Share of requests over the budget of their length in the last 5 minutes; the line is the page's fast "
            "burn.",
            [Query(context_share_over_budget("5m"), "{{context}}")],
            "percentunit",
            limit=Limit(round(limit.TTFT_FAST_BURN * _ALLOWED, 6)),
        ),
        series(
            "Burn rate of the budget",
            "How many times faster than allowed the budget of slow first tokens is spent, worst bucket. The page needs "
            f"{limit.TTFT_FAST_BURN:g} over 1 h and 5 min, or {limit.TTFT_SLOW_BURN:g} over 6 h and 30 min.",
            [
                Query(f"max({context_share_over_budget(window)}) / {_ALLOWED:g}", window)
                for window in ("5m", "30m", "1h", "6h")
            ],
            "none",
            limit=Limit(limit.TTFT_SLOW_BURN),
            width=8,
        ),
        series(
            "All prompts, from vLLM",
            "Median and 95th percentile over every length, vLLM's own histogram.",
            [
                Query(quantile(0.5, "vllm:time_to_first_token_seconds", VLLM), "median"),
                Query(quantile(0.95, "vllm:time_to_first_token_seconds", VLLM), "95th percentile"),
            ],
            "s",
            width=8,
        ),
        series(
            "Prompts above 32k tokens",
            "Share of requests with long prompts: first tokens slow down faster than the length, and the KV cache "
            "fills.",
            [
                Query(
                    f'(sum(rate({share}{{{MOE_WATCH}, context=~"{long}"}}[$__rate_interval])) or vector(0)) / '
                    f"sum(rate({share}{{{MOE_WATCH}}}[$__rate_interval]))",
                    "share",
                )
            ],
            "percentunit",
            width=8,
        ),
    ]


def _speed() -> list[Any]:
    return [
        number(
            "MoE advantage",
            "Tokens per second of the MoE over the dense model's at equal concurrency; below 1 the MoE does not pay.",
            Query(f"min(moe_watch_moe_advantage_ratio{{{MOE_WATCH}}})", "times"),
            "none",
            limit=Limit(limit.MOE_ADVANTAGE_RATIO, above=False),
            height=8,
        ),
        series(
            "MoE advantage with its upper bound",
            "The alert compares the upper bound: even the optimist says that the dense model would be faster.",
            [
                Query(f"moe_watch_moe_advantage_ratio{{{MOE_WATCH}}}", "{{replica}}"),
                Query(f"moe_watch_moe_advantage_ratio_upper{{{MOE_WATCH}}}", "{{replica}} at most"),
            ],
            "none",
            limit=Limit(limit.MOE_ADVANTAGE_RATIO, above=False),
            width=8,
        ),
        series(
            "Time per output token",
            "Median and 95th percentile between tokens, from vLLM.",
            [
                Query(quantile(0.5, "vllm:inter_token_latency_seconds", VLLM), "median"),
                Query(quantile(0.95, "vllm:inter_token_latency_seconds", VLLM), "95th percentile"),
            ],
            "s",
        ),
        series(
            "Tokens",
            "Tokens a second, prompt and generated, from vLLM.",
            [
                Query(f"sum(rate(vllm:prompt_tokens_total{{{VLLM}}}[$__rate_interval]))", "prompt"),
                Query(f"sum(rate(vllm:generation_tokens_total{{{VLLM}}}[$__rate_interval]))", "generated"),
            ],
            "short",
            width=8,
        ),
        series(
            "Mean time per output token per request",
            "Median and 95th percentile, as moe-watch joins it with routing.",
            [
                Query(quantile(0.5, "moe_watch_time_per_output_token_seconds", MOE_WATCH), "median"),
                Query(quantile(0.95, "moe_watch_time_per_output_token_seconds", MOE_WATCH), "95th percentile"),
            ],
            "s",
            width=8,
        ),
        series(
            "End to end",
            "95th percentile of whole requests and of their parts, from vLLM.",
            [
                Query(quantile(0.95, "vllm:e2e_request_latency_seconds", VLLM), "end to end"),
                Query(quantile(0.95, "vllm:request_queue_time_seconds", VLLM), "queue"),
                Query(quantile(0.95, "vllm:request_prefill_time_seconds", VLLM), "prefill"),
                Query(quantile(0.95, "vllm:request_decode_time_seconds", VLLM), "decode"),
            ],
            "s",
            width=8,
        ),
    ]


def _memory() -> list[Any]:
    return [
        series(
            "KV cache in use",
            "From vLLM. Above the line requests are preempted and computed again.",
            [Query(f"vllm:kv_cache_usage_perc{{{VLLM}}}", _WHERE)],
            "percentunit",
            limit=Limit(limit.KV_CACHE_RATIO),
            high=1.0,
        ),
        series(
            "Preemptions",
            "Requests thrown out of the KV cache a second, from vLLM; each is computed again.",
            [
                Query(
                    f"sum by (replica, instance) (rate(vllm:num_preemptions_total{{{VLLM}}}[$__rate_interval]))",
                    _WHERE,
                )
            ],
            "reqps",
        ),
        series(
            "Running and waiting",
            "Requests in the engine, from vLLM. Waiting without a full KV cache: the scheduler's limits.",
            [
                Query(f"sum(vllm:num_requests_running{{{VLLM}}})", "running"),
                Query(f"sum(vllm:num_requests_waiting{{{VLLM}}})", "waiting"),
            ],
            "short",
            width=8,
        ),
        series(
            "Prefix cache hits",
            "Share of prompt tokens found in the prefix cache, from vLLM; these are not routed again.",
            [
                Query(
                    f"sum(rate(vllm:prefix_cache_hits_total{{{VLLM}}}[$__rate_interval])) / "
                    f"sum(rate(vllm:prefix_cache_queries_total{{{VLLM}}}[$__rate_interval]))",
                    "share",
                )
            ],
            "percentunit",
            high=1.0,
            width=8,
        ),
        series(
            "Finished requests",
            "Requests a second by the reason they ended, from vLLM.",
            [
                Query(
                    f"sum by (finished_reason) (rate(vllm:request_success_total{{{VLLM}}}[$__rate_interval]))",
                    "{{finished_reason}}",
                )
            ],
            "reqps",
            width=8,
        ),
    ]
