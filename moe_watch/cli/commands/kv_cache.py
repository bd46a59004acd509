"""``moe-watch kv-cache``: the KV cache that a request needs, and the longest request that fits now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import httpx

from moe_watch.cli import setup, tables, terminal
from moe_watch.domain.amounts import plural
from moe_watch.metrics.series import CONTEXT_BUCKETS
from moe_watch.servers import kv_cache
from moe_watch.servers.kv_cache import Layer, Plan
from moe_watch.servers.prometheus_text import samples
from moe_watch.servers.urls import shown, why

_GIB = 2**30
_MOST_GIB = 2**20


@click.command()
@click.argument("config", type=click.Path(exists=True, path_type=Path))
@click.option("--dtype", default="bfloat16", show_default=True, help="Data type of the cache (fp8: half the size).")
@click.option("--ranks", default=1, show_default=True, type=click.IntRange(1), help="Tensor-parallel ranks.")
@click.option(
    "--in-flight",
    default=8192,
    show_default=True,
    type=click.IntRange(0),
    help="Tokens in a batch; twice as many with async scheduling.",
)
@click.option("--block", default=16, show_default=True, type=click.IntRange(1), help="Tokens per block.")
@click.option("--free-gib", type=float, help="Free KV cache of a rank; prints the longest request that fits.")
@click.option("--url", type=setup.ADDRESS, help="Ask this vLLM server for block size and free blocks instead.")
def command(
    config: Path, *, dtype: str, ranks: int, in_flight: int, block: int, free_gib: float | None, url: str | None
) -> None:
    """Predict KV-cache memory by context length from CONFIG, the folder of a checkpoint or its config.json."""
    file = config / "config.json" if config.is_dir() else config
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
        layers, size = kv_cache.layers(read), kv_cache.dtype_bytes(dtype)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{file}: {error}") from error
    except (AttributeError, TypeError) as error:
        raise click.ClickException(f"{file} is no config of a model: {error}") from error
    if free_gib is not None and not 0 <= free_gib < _MOST_GIB:
        raise click.BadParameter(f"{free_gib} GiB is no size of a cache", param_hint="--free-gib")
    blocks, block = _ask(url) if url else (None, block)
    plan = kv_cache.plan(layers, block_tokens=block, dtype_bytes=size, ranks=ranks, in_flight=in_flight)
    if free_gib is not None:
        blocks = int(free_gib * _GIB) // plan.block_bytes
    longest = _longest(read)
    _print(layers, plan, size, ranks, longest)
    if blocks is not None:
        terminal.line(
            f"Free: {plural(blocks, 'block')}. The longest request that fits: "
            f"{plural(plan.admissible(blocks, longest), 'token')}."
        )


def _longest(read: dict[str, Any]) -> int:
    text = read.get("text_config") or read
    return int(text.get("max_position_embeddings") or max(CONTEXT_BUCKETS.values()))


def _print(layers: list[Layer], plan: Plan, size: int, ranks: int, longest: int) -> None:
    rows = []
    for tokens in sorted({*(bucket for bucket in CONTEXT_BUCKETS.values() if bucket < longest), longest}):
        needed = kv_cache.needed_bytes(layers, tokens, dtype_bytes=size, ranks=ranks)
        rows.append((f"{tokens:,}", f"{needed / _GIB:.3f}", f"{plan.bytes(tokens) / _GIB:.3f}"))
    tables.show(tables.Grid(("context", "needed, GiB", "vLLM may take, GiB"), rows))


def _ask(url: str) -> tuple[int, int]:
    """Return free blocks and tokens of a block, from vLLM's own metrics."""
    try:
        text = httpx.get(url.rstrip("/").removesuffix("/v1") + "/metrics", timeout=10).raise_for_status().text
    except httpx.HTTPError as error:
        raise click.ClickException(f"{shown(url)} does not answer: {why(error)}") from error
    try:
        info = samples(text, "vllm:cache_config_info")[0].labels
        used = max(one.value for one in samples(text, "vllm:kv_cache_usage_perc"))
        return int(int(info["num_gpu_blocks"]) * (1 - used)), int(info["block_size"])
    except (IndexError, KeyError, OverflowError, ValueError) as error:
        raise click.ClickException(
            f"{shown(url)}/metrics has no vllm:cache_config_info: is it a vLLM server?"
        ) from error
