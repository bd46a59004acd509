"""A fake worker for the tap to attach to the way it attaches in vLLM: plugin, import hook, loaded model, routers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vllm.distributed import parallel_state
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.worker_base import WorkerWrapperBase

from moe_watch.tap import plugin
from moe_watch.tap.api import api_sender
from moe_watch.tap.engine.counts import Shape
from moe_watch.tap.send.sender import Sender
from tests.support import fake_engine

SHAPE = Shape(3, 16, 4)  # of the configuration that the fake engine is built with


class FakeRouter(BaseRouter):
    """Chooses what it is told; all else is vLLM's."""

    def __init__(self) -> None:
        super().__init__(SHAPE.top_k, SHAPE.experts)
        self.chosen = torch.empty(0)

    def _compute_routing(self, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(self.chosen, dtype=torch.float32), self.chosen

    @property
    def routing_method_type(self) -> Any:
        """Have none."""


class FakeLayer(torch.nn.Module):
    """A layer that vLLM can listen to, with a router whose logits can be had."""

    is_monolithic = False

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_id = number
        self.capture_fn: Any = None
        self.router = FakeRouter()

    def forward(self, chosen: torch.Tensor) -> None:
        """Route as ``chosen`` [tokens, top_k] says."""
        self.router.chosen = chosen
        logits = torch.zeros(len(chosen), SHAPE.experts).scatter_(1, chosen.long(), 3.0)
        self.router._select_experts(torch.zeros(len(chosen), 1), logits)
        if self.capture_fn is not None:
            self.capture_fn(chosen)


class LoadedRunner(fake_engine.FakeRunner):
    """A runner whose layers do the routing, so that what is bound to them hears it."""

    device = torch.device("cpu")

    def __init__(self, generation: str, seed: int) -> None:
        super().__init__(SimpleNamespace(single=False), SHAPE, generation, seed)  # type: ignore[arg-type]
        self.model = torch.nn.ModuleList(FakeLayer(number) for number in range(SHAPE.layers))

    def get_model(self) -> torch.nn.Module:
        """Return the model with its layers."""
        return self.model

    def _route(self, chosen: NDArray[np.int64]) -> None:
        for layer, rows in zip(self.model, chosen, strict=True):
            layer(torch.from_numpy(rows.astype(np.int32)))


class FakeWorker:
    """Has of ``vllm.v1.worker.gpu_worker.Worker`` what the tap uses."""

    def __init__(self, runner: LoadedRunner, config: Any) -> None:
        self.model_runner = runner
        self.vllm_config = config
        self.warm_up: Callable[[], Any] = lambda: runner._dummy_run(7)

    def init_device(self) -> None:
        """Do nothing."""

    def load_model(self) -> None:
        """Have it already."""

    def compile_or_warm_up_model(self) -> Any:
        """Route tokens of nobody."""
        return self.warm_up()


class AttachedEngine(fake_engine.Engine):
    """The fake engine whose tap came by the plugin."""

    traced = False

    def _put_runner(self, config: Any) -> None:
        plugin.register()
        config.compilation_config.mode = 3 if self.traced else 0
        self.runner = LoadedRunner(self.generation, self.seed)
        wrapper = WorkerWrapperBase.__new__(WorkerWrapperBase)
        wrapper.vllm_config = config
        wrapper.worker = self.worker = worker = FakeWorker(self.runner, config)  # type: ignore[assignment]
        wrapper.init_device()
        worker.load_model()
        worker.compile_or_warm_up_model()


class TracedEngine(AttachedEngine):
    """Its model's code is said to be compiled."""

    traced = True


@contextlib.contextmanager
def attaching(monkeypatch: pytest.MonkeyPatch, work: Path) -> Iterator[list[Sender]]:
    """Switch the tap on, for as long as this lasts; yield the senders that it makes."""
    made: list[Sender] = []

    class Remembered(Sender):
        def __init__(self, *args: Any) -> None:
            made.append(self)
            super().__init__(*args)

    monkeypatch.setenv("MOE_WATCH_ENDPOINT", f"ipc://{work}/s")
    monkeypatch.setattr(api_sender, "Sender", Remembered)
    monkeypatch.setattr("moe_watch.tap.engine.attach.Sender", Remembered)
    monkeypatch.setattr(plugin, "_hooked", False)
    monkeypatch.setattr(parallel_state, "get_tp_group", lambda: SimpleNamespace(rank_in_group=0))
    for owner, name in ((Scheduler, "_free_request"), (Scheduler, "schedule"), (WorkerWrapperBase, "init_device")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    api_sender.sender.cache_clear()
    try:
        yield made
    finally:
        for sender in made:
            if "_thread" in vars(sender):
                sender.close(5)
        api_sender.sender.cache_clear()
