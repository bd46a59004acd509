"""What the tap does in a step, in CPU time and without a model: ``python -m bench.tap.overhead_steps``.

A runner whose forward pass only shows made-up logits and expert ids, layer by layer, as vLLM's routers do in eager code
on a CPU; requests of 60 tokens and 24 more enter one a step as long as the batch has room. Prints microseconds of the
thread that computes the steps, those of an empty runner taken off, and of the sender's thread per frame; writes
``bench/results/tap_overhead_steps.json`` and the table in docs/tap.md.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import click
import torch

from bench import DOCS, RESULTS
from moe_watch import wire
from moe_watch.tap.engine import layers
from moe_watch.tap.engine.capture import Capturer
from moe_watch.tap.engine.counts import Counts, Shape
from moe_watch.tap.engine.finish_notes import Ending
from moe_watch.tap.engine.routing import RoutingTap
from moe_watch.tap.engine.runner import watch
from moe_watch.tap.send.status import Status

SHAPES = {"6 x 16, top-4": Shape(6, 16, 4), "30 x 128, top-8": Shape(30, 128, 8)}
PROMPT, OUTPUT, WARM, STEPS = 60, 24, 200, 1000
PAGE = DOCS / "tap.md"


@dataclass(frozen=True)
class Cost:
    """CPU time in microseconds: per step for counts alone and with confidence, per request in the sender."""

    shape: str
    batch: int
    tokens_a_step: float
    counts_us: float
    confident_us: float
    frame_us: float


class Sender:
    """Keeps what is to be sent."""

    def __init__(self) -> None:
        self.status = Status()
        self.builds: list[Callable[[dict[str, Any]], wire.AnyFrame | None]] = []

    def put(self, build: Any, size: int = 512) -> None:
        """Keep it."""
        del size
        self.builds.append(build)

    def give_up(self, where: str, error: Exception) -> None:
        """Fail: what is timed must work."""
        raise RuntimeError(where) from error


class Router(torch.nn.Module):
    """Has of a router what the tap touches."""

    capture_fn: Any = None

    def _compute_routing(self, _states: Any, _logits: Any, _dtype: Any, *, input_ids: Any = None) -> None:
        del input_ids

    def show(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """Do as ``BaseRouter._select_experts``."""
        self._compute_routing(None, logits, None, input_ids=None)
        if self.capture_fn is not None:
            self.capture_fn(ids)


def schedule(batch: int) -> list[Any]:
    """Return the steps of a batch that is kept full, as far as the tap reads ``SchedulerOutput``."""
    made, computed, ended, number = [], dict[str, int](), list[str](), itertools.count()
    for _ in range(WARM + STEPS):
        before, new = dict(computed), []
        if len(computed) < batch:
            new = [
                SimpleNamespace(
                    req_id=f"chatcmpl-{next(number):08x}-0f0f0f0f", num_computed_tokens=0, prompt_len=PROMPT
                )
            ]
        lengths = {**dict.fromkeys(before, 1), **{one.req_id: PROMPT for one in new}}
        made.append(
            SimpleNamespace(
                finished_req_ids=set(ended),
                moe_watch_endings={name: Ending(OUTPUT, "finished") for name in ended},
                scheduled_cached_reqs=SimpleNamespace(req_ids=list(before), num_computed_tokens=list(before.values())),
                scheduled_new_reqs=new,
                num_scheduled_tokens=lengths,
                total_num_scheduled_tokens=sum(lengths.values()),
            )
        )
        computed = {name: before.get(name, 0) + length for name, length in lengths.items()}
        ended = [name for name, done in computed.items() if done >= PROMPT + OUTPUT - 1]
        computed = {name: done for name, done in computed.items() if name not in ended}
    return made


def run(shape: Shape, batch: int, *, tap: bool, confidence: bool) -> tuple[float, float]:
    """Return microseconds a step and, of the sender, a frame."""
    steps, routers, cpu = schedule(batch), [Router() for _ in range(shape.layers)], torch.device("cpu")
    sizes = {step.total_num_scheduled_tokens for step in steps}
    logits = {size: torch.randn(shape.layers, size, shape.experts).bfloat16() for size in sizes}
    shown = {size: [*zip(some, some.topk(shape.top_k).indices.int(), strict=True)] for size, some in logits.items()}

    def execute(step: Any) -> None:
        for router, (some, ids) in zip(routers, shown[step.total_num_scheduled_tokens], strict=True):
            router.show(some, ids)
        runner.input_batch.req_ids = list(step.num_scheduled_tokens)

    runner: Any = SimpleNamespace(
        input_batch=SimpleNamespace(req_ids=[]), execute_model=execute, _dummy_run=None, get_model=torch.nn.Module
    )
    sender = Sender()
    if tap:
        capturer = Capturer(range(shape.layers), 2048, shape.top_k, cpu, single=False)
        for number, router in enumerate(routers):
            listener = layers._Unfelt(capturer, capturer)  # noqa: SLF001 - what is bound in vLLM
            router.capture_fn = functools.partial(listener.capture, number)
        if confidence:
            capturer.keep_logits(shape.experts, torch.bfloat16)
            for number, router in enumerate(routers):
                layers._show_logits(router, capturer, number)  # noqa: SLF001
        watch(runner, RoutingTap(capturer, Counts(512, shape, cpu), 512, "bench", sender))  # type: ignore[arg-type]
    for step in steps[:WARM]:
        runner.execute_model(step)
    began = time.thread_time()
    for step in steps[WARM:]:
        runner.execute_model(step)
    took, began = time.thread_time() - began, time.thread_time()
    for seq, build in enumerate(sender.builds):
        frame = build({"replica": "bench", "source": "bench", "seq": seq, "sent_at": 0.0})
        wire.encode(frame)  # type: ignore[arg-type]
    return 1e6 * took / STEPS, 1e6 * (time.thread_time() - began) / max(len(sender.builds), 1)


@click.command()
def main() -> None:
    """Print a table, write JSON and the table in the docs."""
    torch.set_num_threads(1)
    costs = []
    lines = ["| shape | requests in a step | tokens in a step | counts | with confidence | frame, a request |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for (name, shape), batch in itertools.product(SHAPES.items(), (1, 8, 32)):
        empty, counts, both = (
            min(run(shape, batch, tap=tap, confidence=confidence) for _ in range(3))
            for tap, confidence in ((False, False), (True, False), (True, True))
        )
        tokens = sum(step.total_num_scheduled_tokens for step in schedule(batch)[WARM:]) / STEPS
        cost = Cost(name, batch, tokens, counts[0] - empty[0], both[0] - empty[0], both[1])
        costs.append(asdict(cost))
        lines.append(
            f"| {name} | {batch} | {tokens:.1f} | {cost.counts_us:.0f} us | {cost.confident_us:.0f} us"
            f" | {cost.frame_us:.0f} us |"
        )
        print(lines[-1], flush=True)
    (RESULTS / "tap_overhead_steps.json").write_text(json.dumps(costs, indent=1) + "\n")
    head, mark, rest = PAGE.read_text().partition("<!-- overhead steps -->\n")
    end = "<!-- end overhead steps -->"
    PAGE.write_text(head + mark + "\n".join(lines) + "\n" + end + rest.partition(end)[2] if mark else head)


if __name__ == "__main__":
    main()
