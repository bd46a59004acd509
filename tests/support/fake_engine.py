"""vLLM's real scheduler, sync or async, in front of a fake model runner: steps without a forward pass.

The fake model's next token and its routing follow from the request's number and the position alone, so that what must
be counted is known beforehand.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.gpu.model_runner import sort_batch_req_ids

import demo
from moe_watch.tap.engine.capture import Capturer
from moe_watch.tap.engine.counts import Counts, Shape
from moe_watch.tap.engine.routing import RoutingTap
from moe_watch.tap.engine.runner import watch
from moe_watch.tap.send.status import Status

MODEL = Path(next(iter(demo.__path__))) / "models" / "moe"
STOP = 7
BLOCK = 16


def routes(seed: int, positions: NDArray[np.int64], shape: Shape) -> NDArray[np.int64]:
    """Return the experts [layers, positions, top_k] that the fake model chooses: distinct ones for each token."""
    layer = np.arange(shape.layers)[:, None, None]
    first = seed * 7919 + positions[None, :, None] * 31 + layer * 17
    return (first + np.arange(shape.top_k) * (1 + first % 2)) % shape.experts


@dataclass
class Work:
    """One request to come; ``length`` is when the fake model says stop, ``aborted_after`` a number of outputs."""

    seed: int
    prompt: list[int]
    max_tokens: int
    length: int
    aborted_after: int | None = None
    stop_in_client: bool = False

    @property
    def request_id(self) -> str:
        """Return the id as a client sees it."""
        return f"chatcmpl-{self.seed}"

    def token(self, index: int) -> int:
        """Return output token ``index``."""
        return STOP if index >= self.length else 100 + (self.seed + index) % 900


class RecordingSender:
    """Has the interface of ``Sender`` and makes every frame at once."""

    def __init__(self) -> None:
        self.status = Status()
        self.frames: list[Any] = []
        self.events: list[tuple[str, str]] = []

    def put(self, build: Any, size: int = 512) -> None:
        """Make the frame."""
        del size
        frame = build({"replica": "r", "source": "s", "seq": len(self.frames), "sent_at": 0.0})
        if frame is not None:
            self.frames.append(frame)

    def event(self, kind: str, detail: str) -> None:
        """Remember the event."""
        self.events.append((kind, detail))

    def give_up(self, where: str, error: Exception) -> None:
        """Do as ``Sender.give_up``."""
        if self.status.fail(where, error):
            self.event("tap_off", self.status.reason)


class FakeRunner:
    """Has of either model runner what the tap uses, and routes instead of computing."""

    def __init__(self, capturer: Capturer, shape: Shape, generation: str, seed: int) -> None:
        self.capturer = capturer
        self.shape = shape
        self.random = random.Random(seed)  # noqa: S311
        self.works: dict[str, Work] = {}
        self.known: dict[str, tuple[int, int]] = {}  # engine id -> prompt tokens, computed tokens
        if generation == "v2":
            self.req_states = SimpleNamespace()
            self.execute_model_state: Any = None
        else:
            self.input_batch = SimpleNamespace(req_ids=[])
        self.generation = generation

    def get_model(self) -> torch.nn.Module:
        """Return a model without layers."""
        return torch.nn.Module()

    def _dummy_run(self, tokens: int) -> None:
        """Route ``tokens`` that belong to nobody, as warm-up, profiling and idle data-parallel ranks do."""
        self._route(np.zeros((self.shape.layers, tokens, self.shape.top_k), np.int64))

    def execute_model(self, scheduled: SchedulerOutput, **kwargs: Any) -> None:
        """Route the scheduled tokens in an order of the runner's own."""
        if kwargs.get("dummy_run"):
            self._dummy_run(scheduled.total_num_scheduled_tokens)
            return
        for new in scheduled.scheduled_new_reqs:
            self.known[new.req_id] = (new.prompt_len, new.num_computed_tokens)
        cached = scheduled.scheduled_cached_reqs
        for request, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self.known[request] = (self.known[request][0], computed)
        lengths = scheduled.num_scheduled_tokens
        if self.generation == "v2":
            order = sort_batch_req_ids(lengths, {}, 1)
            self.execute_model_state = SimpleNamespace(input_batch=SimpleNamespace(req_ids=order))
        else:
            order = self.random.sample(list(lengths), len(lengths))
            self.input_batch.req_ids = order
        if order:
            self._route(np.concatenate([self._of(request, lengths[request]) for request in order], 1))

    def sample(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """Return the next token of each request whose known text was computed to its end."""
        requests = list(scheduled.num_scheduled_tokens)
        tokens: list[list[int]] = []
        for request in requests:
            prompt, computed = self.known[request]
            index = computed + scheduled.num_scheduled_tokens[request] - prompt
            tokens.append([self.works[request].token(index)] if index >= 0 else [])
        return ModelRunnerOutput(requests, {r: i for i, r in enumerate(requests)}, tokens)

    def _of(self, request: str, length: int) -> NDArray[np.int64]:
        start = self.known[request][1]
        return routes(self.works[request].seed, np.arange(start, start + length), self.shape)

    def _route(self, chosen: NDArray[np.int64]) -> None:
        pad = np.zeros((self.shape.layers, -chosen.shape[1] % 8 if self.capturer.single else 0, self.shape.top_k))
        padded = np.concatenate([chosen, pad.astype(np.int64)], 1)
        for layer in range(self.shape.layers):
            self.capturer.capture(layer, torch.from_numpy(padded[layer].astype(np.int32)))


@dataclass
class Engine:
    """The scheduler, the runner and the tap on it; ``asynchronous`` schedules a step before the last one is known."""

    seed: int = 0
    asynchronous: bool = False
    generation: str = "v1"
    single: bool = False
    shape: Shape = field(default_factory=lambda: Shape(3, 11, 2))
    blocks: int = 400
    max_batched: int = 64
    max_seqs: int = 8
    caching: bool = False
    sender: RecordingSender = field(default_factory=RecordingSender)

    def __post_init__(self) -> None:
        """Build everything."""
        config = _config(self.max_batched, self.max_seqs, caching=self.caching)
        config.scheduler_config.async_scheduling = self.asynchronous
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        kv_cache = KVCacheConfig(self.blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        config.cache_config.num_gpu_blocks = self.blocks
        kind = AsyncScheduler if self.asynchronous else Scheduler
        self.scheduler = kind(config, kv_cache, StructuredOutputManager(config), BLOCK)
        self.scheduler.use_v2_model_runner = self.generation == "v2"
        self._put_runner(config)
        self._queue: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self._random = random.Random(self.seed)  # noqa: S311
        self._ids: dict[str, Work] = {}
        self._outputs: dict[str, int] = {}

    def _put_runner(self, config: Any) -> None:
        """Make a runner with the tap on."""
        del config
        rows = self.max_batched + 8
        capturer = Capturer(
            list(range(self.shape.layers)), rows, self.shape.top_k, torch.device("cpu"), single=self.single
        )
        self.runner = FakeRunner(capturer, self.shape, self.generation, self.seed)
        slots = 2 * self.max_seqs
        counts = Counts(slots, self.shape, torch.device("cpu"))
        self.tap = RoutingTap(capturer, counts, slots, "fake", self.sender)  # type: ignore[arg-type]
        watch(self.runner, self.tap)

    def add(self, work: Work) -> str:
        """Queue a request; return the engine's id of it."""
        engine_id = f"{work.request_id}-{work.seed % 2**32:08x}"
        init_none_hash(sha256)
        params = SamplingParams(max_tokens=work.max_tokens, stop_token_ids=[STOP], temperature=0)
        hasher = get_request_block_hasher(BLOCK, sha256) if self.caching else None
        self.scheduler.add_request(Request(engine_id, work.prompt, params, None, block_hasher=hasher))
        self.runner.works[engine_id] = self._ids[engine_id] = work
        self._outputs[engine_id] = 0
        return engine_id

    def step(self) -> bool:
        """Do as ``EngineCore.step`` or ``step_with_batch_queue``; return False when there is nothing left to do."""
        if self.scheduler.has_requests():
            scheduled = self.scheduler.schedule()
            self.runner.execute_model(scheduled)
            if not scheduled.total_num_scheduled_tokens or (not self.single and self._random.random() < 0.1):
                self.runner._dummy_run(5)  # as an idle data-parallel rank does
            self._queue.append((scheduled, self.runner.sample(scheduled)))
            if self.asynchronous and len(self._queue) < 2 and self.scheduler.has_requests():
                return True
        elif not self._queue:
            return False
        self._update(*self._queue.popleft())
        return True

    def run(self) -> None:
        """Step until all is done."""
        while self.step():
            pass

    def _update(self, scheduled: SchedulerOutput, sampled: ModelRunnerOutput) -> None:
        outputs = self.scheduler.update_from_output(scheduled, sampled)
        for core in outputs.values():
            for output in core.outputs:
                self._outputs[output.request_id] += len(output.new_token_ids)
                work = self._ids[output.request_id]
                if work.aborted_after is not None and self._outputs[output.request_id] >= work.aborted_after:
                    self.scheduler.finish_requests([output.request_id], RequestStatus.FINISHED_ABORTED)


@functools.cache  # slow to make; what an engine changes in it, every engine sets
def _config(max_batched: int, max_seqs: int, *, caching: bool) -> Any:
    arguments = EngineArgs(
        model=str(MODEL),
        max_model_len=512,
        max_num_batched_tokens=max_batched,
        max_num_seqs=max_seqs,
        enable_prefix_caching=caching,
        enforce_eager=True,
        block_size=32,
    )
    return arguments.create_engine_config()
