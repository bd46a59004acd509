"""What captured CUDA graphs write to lives as long as the process, however the tap was switched off.

Weak references tell: nothing may be collected. The log is silent meanwhile, since a record of an exception holds every
frame that it passed, and with them the buffers whose loss is looked for.
"""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm.v1.core.sched.scheduler")

import torch
from vllm.model_executor.layers.fused_moe import routed_experts_capturer

from moe_watch.tap.engine import attach, finish_notes, identity
from moe_watch.tap.engine.capture import Capturer, StepBuffer
from moe_watch.tap.engine.routing import RoutingTap
from moe_watch.tap.send.sender import Sender
from tests.support import fake_engine, fake_worker

Patch = pytest.MonkeyPatch


class Sink:
    """Where a monolithic kernel writes its choices."""


@pytest.fixture
def written(monkeypatch: Patch) -> Iterator[list[weakref.ref[Any]]]:
    """Return weak references to all that graphs could write to; without a log."""
    found: list[weakref.ref[Any]] = []
    make, bind = StepBuffer.__init__, routed_experts_capturer.bind_routed_experts_capturer

    def made(self: StepBuffer, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        found.extend((weakref.ref(self.all), weakref.ref(self.first)))

    def bound(model: torch.nn.Module, capturer: Any) -> None:
        bind(model, capturer)
        for layer in model.children():
            layer.routed_experts = SimpleNamespace(routing_sink=Sink())  # type: ignore[assignment]
            found.append(weakref.ref(layer.routed_experts.routing_sink))

    monkeypatch.setattr(StepBuffer, "__init__", made)
    monkeypatch.setattr(routed_experts_capturer, "bind_routed_experts_capturer", bound)
    logging.disable(logging.CRITICAL)
    try:
        yield found
    finally:
        logging.disable(logging.NOTSET)


def failing(owner: Any, name: str, error: type[Exception] = ZeroDivisionError) -> Callable[[Patch], None]:
    """Return what makes one function of the tap raise."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error("injected")

    return lambda patch: patch.setattr(owner, name, fail)


def frames_that_cannot_be_sent(patch: Patch) -> None:
    """Have so many frames fail in a row that the sender gives up."""
    patch.setattr("moe_watch.tap.send.sender.wire.encode", lambda _: 1 / 0)


# Every way out of the tap: from the step of a runner, from attaching it, from the sender's thread, from the scheduler.
WAYS: dict[str, Callable[[Patch], None]] = {
    "before a step": failing(RoutingTap, "begin"),
    "after a step": failing(RoutingTap, "end"),
    "in the forward pass": failing(Capturer, "capture"),
    "while steps are counted": failing(RoutingTap, "settle"),
    "while it attaches": failing(attach, "_report_rebalances"),
    "while it refuses": failing(attach, "_report_rebalances", ValueError),
    "once it is bound": failing(attach, "RoutingTap", ValueError),
    "in the announcement": failing(identity, "_backend"),
    "in the sender's thread": failing(Sender, "_serve"),
    "by frames that cannot be made": frames_that_cannot_be_sent,
    "in the scheduler": failing(finish_notes, "note"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_graphs_write_to_outlives_every_way_of_switching_off(
    way: str, written: list[weakref.ref[Any]], monkeypatch: Patch, tmp_path: Path
) -> None:
    """The engine serves on, and nothing that was bound to it is collected."""
    with fake_worker.attaching(monkeypatch, tmp_path), monkeypatch.context() as faulty:
        WAYS[way](faulty)
        engine = fake_worker.TracedEngine(seed=1)
        for number in range(4):
            engine.add(fake_engine.Work(number, [20 + number] * 9, 4, 60))
        engine.run()
        engine.runner._dummy_run(3)
        assert list(engine._outputs.values()) == [4] * 4
    gc.collect()
    assert [one for one in written if one() is None] == []
    assert bool(written) == (way != "in the announcement")


def test_letting_go_of_a_model_keeps_what_its_graphs_write_to(written: list[weakref.ref[Any]]) -> None:
    """Whoever drops the capturer and the model's hooks, the buffers stay."""
    capturer: Capturer | None = Capturer([0, 1], 4, 2, torch.device("cpu"), single=True)
    assert capturer is not None
    capturer.keep_logits(4, torch.float32)
    capturer = None
    gc.collect()
    assert len(written) == 4
    assert all(one() is not None for one in written)
