"""Behind vLLM's real schedulers each position of each text is counted once, whatever happens to the request."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moe_watch import wire
from moe_watch.tap.engine import finish_notes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
scheduler_module = pytest.importorskip("vllm.v1.core.sched.scheduler")

from tests.support import fake_engine  # noqa: E402 - it needs vLLM

BOTH = pytest.mark.parametrize("asynchronous", [False, True])


@pytest.fixture(autouse=True)
def _noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scheduler note how requests end, as the plugin does."""
    scheduler = scheduler_module.Scheduler
    monkeypatch.setattr(scheduler, "_free_request", scheduler._free_request)
    monkeypatch.setattr(scheduler, "schedule", scheduler.schedule)
    finish_notes.hook(scheduler_module)


def random_work(n: int, seed: int) -> list[fake_engine.Work]:
    """Return requests with and without a common prefix, some of which the client ends."""
    generator = random.Random(seed)  # noqa: S311
    works = []
    for number in range(n):
        own = [20 + (number * 7 + place) % 50 for place in range(generator.randint(1, 150))]
        prompt = [11] * generator.choice([0, 0, 48]) + own
        aborted = generator.randint(1, 20) if generator.random() < 0.2 else None
        works.append(fake_engine.Work(number, prompt, generator.randint(1, 40), generator.randint(0, 60), aborted))
    return works


def expected(engine: fake_engine.Engine, work: fake_engine.Work, first: int, end: int) -> NDArray[np.int64]:
    """Return the counts [layers, experts] of the positions from ``first`` to ``end``."""
    chosen = fake_engine.routes(work.seed, np.arange(first, end), engine.shape)
    return np.stack([np.bincount(layer.ravel(), minlength=engine.shape.experts) for layer in chosen])


def run(works: list[fake_engine.Work], **settings: Any) -> tuple[fake_engine.Engine, dict[str, wire.Routing]]:
    """Serve ``works``; return the engine and the frames by request."""
    engine = fake_engine.Engine(**settings)
    for work in works:
        engine.add(work)
    engine.run()
    return engine, {frame.request_id: frame for frame in engine.sender.frames}


@BOTH
@pytest.mark.parametrize("generation", ["v1", "v2"])
@pytest.mark.parametrize("single", [False, True], ids=["several steps together", "each step at once and padded"])
@pytest.mark.parametrize("scarce", [False, True], ids=["much memory", "preemption and prefix cache"])
def test_counts_are_those_of_the_text(*, asynchronous: bool, generation: str, single: bool, scarce: bool) -> None:
    """Prompt, output, cached and recomputed positions add up, and their experts are those that were chosen there.

    Rows that pad a step, as under CUDA graphs, and steps of nobody are in no count.
    """
    memory = {"blocks": 26, "caching": True} if scarce else {}
    works = random_work(40, seed=1)
    engine, frames = run(works, seed=1, asynchronous=asynchronous, generation=generation, single=single, **memory)
    assert engine.sender.status.state == "on"
    for work in works:
        frame, length = frames[work.request_id], len(work.prompt)
        prompt = wire.unpack_counts(frame.prompt, frame.layers, frame.experts)
        decode = wire.unpack_counts(frame.decode, frame.layers, frame.experts)
        computed = frame.cached_tokens + frame.prompt_routed
        assert (prompt == expected(engine, work, frame.cached_tokens, computed)).all()
        assert (decode == expected(engine, work, length, length + frame.decode_routed)).all()
        if frame.outcome == "finished":
            assert computed == length
            assert frame.decode_routed == min(work.max_tokens, work.length + 1) - 1, "the last token is not routed"
    if scarce:
        assert sum(frame.recomputed_tokens for frame in frames.values()) > 0
        assert sum(frame.cached_tokens for frame in frames.values()) > 0


@BOTH
def test_nothing_is_kept_of_ten_thousand_requests(*, asynchronous: bool) -> None:
    """After 10,000 requests, a tenth of them aborted, the tap holds what it held before the first."""
    engine = fake_engine.Engine(asynchronous=asynchronous, max_seqs=64, max_batched=256, blocks=2000)
    slots = len(engine.tap.ledger._free)
    for first in range(0, 10_000, 200):
        for number in range(first, first + 200):
            aborted = 1 if number % 10 == 0 else None
            engine.add(fake_engine.Work(number, [11, 12, 13], 3, 9, aborted))
        engine.run()
        engine.sender.frames.clear()
        engine.runner.works.clear()
        engine.runner.known.clear()
    tap = engine.tap
    assert len(tap.ledger) == 0
    assert len(tap.ledger._free) == slots
    assert not tap._prefilling
    assert not tap._homeless
    assert not tap._ended
    assert not tap._measured
    assert engine.sender.status.requests_finished == 10_000
    assert engine.sender.status.requests_unrouted == 0


def test_a_request_without_a_slot_is_said_to_be_unrouted() -> None:
    """More open requests than slots are served all the same, and counted as unrouted."""
    engine = fake_engine.Engine(max_seqs=4)
    engine.tap.ledger._free = engine.tap.ledger._free[:1]
    for number in range(4):
        engine.add(fake_engine.Work(number, [11, 12], 3, 9))
    engine.run()
    assert engine.sender.status.requests_finished == 4
    assert engine.sender.status.requests_unrouted == 3
    assert ("tap_blind", "no slot was free") in engine.sender.events


def test_a_layer_that_is_not_seen_blinds_the_tap() -> None:
    """When a layer stops to tell what it chose, no frame is made of what is left, and the state says blind."""
    engine = fake_engine.Engine()
    capture = engine.tap.capturer.capture
    engine.tap.capturer.capture = lambda layer, ids: None if layer == 1 else capture(layer, ids)  # type: ignore[method-assign]
    engine.add(fake_engine.Work(0, [11, 12], 3, 9))
    engine.run()
    assert engine.sender.frames == []
    assert engine.sender.status.state == "blind"


def test_a_record_of_zeros_blinds_the_tap() -> None:
    """Expert 0 for every choice of every token is no routing."""
    engine = fake_engine.Engine()
    capture = engine.tap.capturer.capture
    engine.tap.capturer.capture = lambda layer, ids: capture(layer, ids * 0)  # type: ignore[method-assign]
    engine.add(fake_engine.Work(0, [11, 12], 3, 9))
    engine.run()
    assert engine.sender.frames == []
    assert engine.sender.status.state == "blind"


@pytest.mark.parametrize("broken", ["begin", "end", "settle", "_open", "_send", "_note_ended"])
def test_an_exception_switches_the_tap_off_and_nothing_else(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails inside a step, all requests are served and the tap says once that it is off, and why."""
    engine = fake_engine.Engine()
    works = random_work(6, seed=2)
    for work in works:
        work.aborted_after = None
        engine.add(work)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(type(engine.tap), broken, fail)
    engine.run()
    assert list(engine._outputs.values()) == [min(work.max_tokens, work.length + 1) for work in works]
    assert engine.sender.status.state == "off"
    assert "injected" in engine.sender.status.reason
    assert [kind for kind, _ in engine.sender.events] == ["tap_off"]


def test_a_failure_to_note_an_ending_is_seen_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler's process has no voice of its own: its failure travels to the tap that counts."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("injected")

    monkeypatch.setattr(finish_notes, "note", fail)
    engine = fake_engine.Engine()
    engine.add(fake_engine.Work(0, [11, 12], 3, 9))
    engine.run()
    assert engine.sender.status.state == "off"
    assert "in the scheduler" in engine.sender.status.reason
