"""What the tap costs a real vLLM: ``python bench/tap_overhead.py [--rounds 5] [--requests 120]``.

Two servers of the same model on the same core, one with the tap, the middleware and a sidecar, one without. They are
loaded in turns, never at once, so that what the machine does meanwhile hits both alike; each round gives one ratio.
Prints medians with their spread and writes ``bench/results/tap_overhead.json``.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from openai import AsyncOpenAI

from moe_watch.demo import servers
from moe_watch.demo.stage import MODELS
from moe_watch.demo.traffic import Prompt, mixture

RESULTS = Path(__file__).parent / "results"
TOKENS = 24


@dataclass(frozen=True)
class Load:
    """One load of one server."""

    requests_per_s: float
    ttft_s: float  # median
    tpot_s: float  # median


@dataclass(frozen=True)
class Cost:
    """On over off at one concurrency: the median of the rounds' ratios, and the smallest and largest."""

    concurrency: int
    measure: str
    median: float
    lowest: float
    highest: float
    rounds: int


async def load(url: str, prompts: list[Prompt], concurrency: int) -> Load:
    """Stream answers to ``prompts``, so many at once, and time them."""
    queue, first, between = iter(prompts), [], []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:

        async def worker() -> None:
            for prompt in queue:
                start = time.perf_counter()
                stream = await client.chat.completions.create(
                    model="bench", messages=[{"role": "user", "content": prompt.text}], max_tokens=TOKENS,
                    temperature=0, stream=True, extra_body={"ignore_eos": True},
                )  # fmt: skip
                stamps = [time.perf_counter() async for _ in stream]
                first.append(stamps[0] - start)
                between.append((stamps[-1] - stamps[0]) / max(len(stamps) - 1, 1))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
        took = time.perf_counter() - began
    return Load(len(prompts) / took, statistics.median(first), statistics.median(between))


def compare(on: str, off: str, concurrency: int, rounds: int, requests: int) -> list[Cost]:
    """Load both in turns, the first one changing, and return the ratios."""
    ratios: dict[str, list[float]] = {name: [] for name in Load.__dataclass_fields__}
    for number in range(rounds + 1):
        prompts = mixture(max(requests * min(concurrency, 8) // 8, 12), seed=1000 * concurrency + number)
        order = [on, off] if number % 2 else [off, on]
        found = {url: asyncio.run(load(url, prompts, concurrency)) for url in order}
        if number == 0:
            continue  # warms both up
        for name, values in ratios.items():
            values.append(getattr(found[on], name) / getattr(found[off], name))
    return [
        Cost(concurrency, name, statistics.median(values), min(values), max(values), rounds)
        for name, values in ratios.items()
    ]


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--requests", default=120, show_default=True, help="Requests of one load at concurrency 8 and more.")
@click.option("--concurrency", default="1,8,32", show_default=True)
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODELS / "moe", show_default=True)
def main(rounds: int, requests: int, concurrency: str, model: Path) -> None:
    """Measure and print what the tap costs."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        env = {"MOE_WATCH_ENDPOINT": f"ipc://{work}/tap.sock", "MOE_WATCH_STORE__URL": f"sqlite:///{work}/bench.db"}
        cores = sorted(os.sched_getaffinity(0))
        same = {"VLLM_CPU_OMP_THREADS_BIND": str(cores[-1])}
        stack.callback(servers.start_sidecar(work, env=env).stop)
        args = ["--middleware", "moe_watch.tap.samples.Middleware"]
        tapped = servers.start_vllm("on", model, work=work, served_name="bench", args=args, env={**env, **same})
        stack.callback(tapped.stop)
        plain = servers.start_vllm("off", model, work=work, served_name="bench", env=same)
        stack.callback(plain.stop)
        for server in (tapped, plain):
            server.wait_ready("/health", 300)
        costs = [
            cost
            for number in concurrency.split(",")
            for cost in compare(tapped.url, plain.url, int(number), rounds, requests)
        ]
    for cost in costs:
        print(f"{cost.concurrency:>3}  {cost.measure:<15} {cost.median:.3f}  ({cost.lowest:.3f} to {cost.highest:.3f})")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tap_overhead.json").write_text(json.dumps([asdict(cost) for cost in costs], indent=1) + "\n")


if __name__ == "__main__":
    main()
