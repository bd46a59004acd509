"""What the tap costs a real vLLM on the CPU: ``python -m bench.tap.overhead measure --shape tiny --minutes 8``.

Three servers of one model are alive at once: without the tap, with it and the middleware, and with it but without
confidence. Only one is loaded at any time, for a second or two, in an order that changes from round to round, with the
same prompts in a round; so what the machine does meanwhile hits all alike, and each round gives one ratio. The others
are stopped meanwhile, because an idle vLLM polls for work. The engines share one core, and everything else shares the
other. Frames go to a real ZMQ receiver, which reads them between loads.

Each ``measure`` adds one start of the servers to ``bench/results/tap_overhead.json``; what was measured of another
state of the tap's source is dropped. ``python -m bench.tap.overhead table`` prints the tables and writes them into
docs/tap.md.

With ``--gpu`` the same is measured of a CUDA vLLM, compiled and with its graphs: the servers share the GPU's memory,
and the result goes to ``bench/results/tap_overhead_gpu.json``.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import signal
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import click
import zmq

from bench.tap import overhead_table as tables
from demo import servers
from demo.stage import MODELS
from demo.traffic import mixture
from moe_watch import wire

TOKENS = 24
SHAPES = {"tiny": "", "30x128": "gemma4-30x128"}
PROTECTED = Path(wire.__file__).parent / "tap"
GPU = ["--no-enforce-eager"]
MIDDLEWARE = ["--middleware", "moe_watch.tap.middleware.Middleware"]


@dataclass(frozen=True)
class Load:
    """One load of one server."""

    requests_per_s: float
    ttft_ms: float  # median
    tpot_ms: float  # median
    api_ms: float  # CPU time of the API server's process, per request
    engine_ms: float  # CPU time of the engine's process, per request


def tap_digest() -> str:
    """Return what names the state of the tap's source that was measured."""
    digest = hashlib.sha256()
    for path in sorted(PROTECTED.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cpu_s(group: int) -> tuple[float, float]:
    """Return the CPU time in seconds that the threads of a server have used: the first process, and all others."""
    first = others = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != group:
                continue
            used = sum(int((task / "schedstat").read_text().split()[0]) for task in (process / "task").iterdir())
        except OSError:
            continue  # it ended meanwhile
        if int(process.name) == group:
            first += used
        else:
            others += used
    return first / 1e9, others / 1e9


async def load(url: str, texts: list[str], concurrency: int) -> tuple[float, list[float], list[float]]:
    """Stream answers to ``texts``, so many at once; return the seconds it took, and every TTFT and TPOT."""
    queue, first, between = iter(texts), list[float](), list[float]()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as client:

        async def worker() -> None:
            for text in queue:
                body = {"model": "bench", "messages": [{"role": "user", "content": text}], "max_tokens": TOKENS,
                        "temperature": 0, "stream": True, "ignore_eos": True}  # fmt: skip
                start = time.perf_counter()
                async with client.post(f"{url}/v1/chat/completions", json=body) as reply:
                    reply.raise_for_status()
                    stamps = [time.perf_counter() async for _ in reply.content.iter_any()]
                first.append(stamps[0] - start)
                between.append((stamps[-1] - stamps[0]) / (TOKENS - 1))

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return time.perf_counter() - began, first, between


class Bench:
    """The servers, alive until ``stack`` closes, and what the taps of them sent."""

    def __init__(self, model: Path, work: Path, stack: ExitStack, variants: list[str], *, gpu: bool) -> None:
        self.socket = stack.enter_context(stack.enter_context(zmq.Context()).socket(zmq.PULL))
        self.socket.set_hwm(0)
        endpoint = f"ipc://{work}/tap.sock"
        self.socket.bind(endpoint)
        self.frames: dict[str, list[int]] = defaultdict(list)  # kind -> sizes in bytes
        self.requests = 0  # that a tapped server answered
        cores = sorted(os.sched_getaffinity(0))
        if not gpu:
            os.sched_setaffinity(0, cores[:1])  # what is started from here on inherits it; an engine binds itself
        self.servers: dict[str, servers.Server] = {}
        for variant in variants:
            env = {"VLLM_CPU_OMP_THREADS_BIND": str(cores[-1]), "OMP_NUM_THREADS": "1"}
            args = [*GPU, "--gpu-memory-utilization", f"{0.8 / len(variants):.2f}"] if gpu else []
            if not variant.startswith("off"):
                args = args + MIDDLEWARE
                env |= {"MOE_WATCH_ENDPOINT": endpoint, "MOE_WATCH_CONFIDENCE": str(int(variant == "on"))}
            server = servers.start_vllm(variant, model, work=work, served_name="bench", args=args, env=env)
            stack.callback(server.stop)
            self.servers[variant] = server
        for server in self.servers.values():
            server.wait_ready("/health", 400)
        stack.callback(self._signal, signal.SIGCONT)

    def _signal(self, number: signal.Signals, *, but: str = "") -> None:
        for variant, server in self.servers.items():
            if variant != but:
                os.killpg(server.process.pid, number)

    def load(self, variant: str, texts: list[str], concurrency: int) -> Load:
        """Load one server while the others wait."""
        server = self.servers[variant]
        self._signal(signal.SIGSTOP, but=variant)  # an idle vLLM spins on the core that it shares with this one
        os.killpg(server.process.pid, signal.SIGCONT)
        before = cpu_s(server.process.pid)
        took, first, between = asyncio.run(load(server.url, texts, concurrency))
        time.sleep(0.15)  # what the tap does after the last answer is part of its cost
        api, engine = (
            1e3 * (now - then) / len(texts) for now, then in zip(cpu_s(server.process.pid), before, strict=True)
        )
        if not variant.startswith("off"):
            self.requests += len(texts)
        self.receive()
        n = len(texts)
        return Load(n / took, 1e3 * sorted(first)[n // 2], 1e3 * sorted(between)[n // 2], api, engine)

    def receive(self) -> None:
        """Read the frames that came."""
        while self.socket.poll(0):
            raw = self.socket.recv()
            self.frames[type(wire.decode(raw)).__name__].append(len(raw))


def checkpoint(shape: str, work: Path) -> Path:
    """Return the committed model, or one of random weights of ``shape``."""
    if not SHAPES[shape]:
        return MODELS / "moe"
    from demo import shapes  # noqa: PLC0415 - it needs transformers

    return shapes.make(SHAPES[shape], work / "model")


@click.group()
def main() -> None:
    """Measure what the tap costs, and print it."""


@main.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="tiny", show_default=True)
@click.option("--minutes", default=8.0, show_default=True, help="Time for all of it; whole rounds only.")
@click.option("--seconds", default=1.2, show_default=True, help="Of one load, about.")
@click.option("--concurrency", default="1,8,32", show_default=True)
@click.option("--variants", default="off,on,counts", show_default=True, help="off2: another off, to see the noise.")
@click.option("--gpu", is_flag=True, help="Of a CUDA vLLM.")
@click.option("--into", type=click.Path(path_type=Path), help="A JSON file other than the usual one.")
def measure(
    shape: str, minutes: float, seconds: float, concurrency: str, variants: str, into: Path | None, *, gpu: bool
) -> None:
    """Start the servers once, load them in turns, and keep what was seen."""
    end = time.monotonic() + 60 * minutes
    digest, into = tap_digest(), into or tables.path(gpu=gpu)
    levels, names = [int(level) for level in concurrency.split(",")], variants.split(",")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(checkpoint(shape, Path(folder)), Path(folder), stack, names, gpu=gpu)
        seed = int(time.time())
        size = {level: 2 * level for level in levels}
        for _, level, name in itertools.product(range(2), levels, names):  # warms up, and finds the size of a load
            texts = [prompt.text for prompt in mixture(size[level], seed)]
            rate = bench.load(name, texts, level).requests_per_s
            size[level], seed = max(level, round(seconds * rate / level) * level), seed + 1
            print(f"warm-up: {name} at {level}: {rate:.1f} requests/s", flush=True)
        rounds, longest, began = [], 0.0, time.monotonic()
        while time.monotonic() + longest < end:
            orders = list(itertools.permutations(names))
            found = {}
            for level in levels:
                seed += 1
                texts = [prompt.text for prompt in mixture(size[level], seed)]
                order = orders[len(rounds) % len(orders)]
                found[level] = {name: asdict(bench.load(name, texts, level)) for name in order}
            rounds.append(found)
            print(f"round {len(rounds)}: {tables.brief(found)}", flush=True)
            longest = max(longest, (time.monotonic() - began) / len(rounds))
        sizes = {kind: [len(all_), sum(all_), max(all_)] for kind, all_ in bench.frames.items()}
    start = {"shape": shape, "tap": digest, "rounds": rounds, "frames": sizes, "tapped_requests": bench.requests}
    tables.add(into, json.loads(json.dumps(start)))
    tables.show(into)


@main.command()
def table() -> None:
    """Print the tables and write them into docs/tap.md."""
    for gpu in (False, True):
        if tables.path(gpu=gpu).exists():
            tables.show(tables.path(gpu=gpu))
            tables.write(tables.path(gpu=gpu))


if __name__ == "__main__":
    main()
