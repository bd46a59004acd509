"""An exception in any function of the tap switches the tap off, and nothing else.

The functions are found in the modules themselves, so that a new one is held to it too. What is fed and what comes out
is compared with the same run without the fault.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import logging
import os
import pkgutil
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import zmq

from moe_watch import tap, wire
from moe_watch.tap.send.sender import Sender
from moe_watch.tap.send.status import Status

pytest.importorskip("vllm.v1.core.sched.scheduler")


from moe_watch.tap import import_hook
from moe_watch.tap.api import api_sender
from moe_watch.tap.engine import attach
from tests.support import fake_api, fake_engine, fake_worker
from tests.support.patience import PATIENCE_S

# Nothing of the tap is around these: vLLM, the ASGI server, the interpreter or a thread calls them, and their bodies
# hold the guards that the others are tested against.
ENTRIES = {
    "plugin.register",
    "import_hook._Finder.find_spec",
    "capture._store",
    "capture._store_fake",
    "layers._Unfelt.capture",
    "latency.LatencyLogger.__init__",
    "latency.LatencyLogger.record",
    "latency.LatencyLogger.log_engine_initialized",
    "middleware.Middleware.__init__",
    "middleware.Middleware.__call__",
    "sender.Sender._run",
}
# Only reached once something else has failed, where the configuration is another one, or from CUDA and a process that
# forks: tests of their own.
ELSEWHERE = {
    "asked._one_by_one": "a message that cannot be read",
    "asked._read_prompts": "a completion",
    "asked._strange": "a body that only Python decodes",
    "attach._report_rebalances": "EPLB",
    "attach._without_experts": "a dense model",
    "capture.StepList._mended": "a layer that says nothing",
    "frames.unrouted": "more requests than slots",
    "ids.Used.__init__": "the API server",
    "ids.Used.unique": "the API server",
    "import_hook._Finder.__init__": "a module that was not imported yet",
    "layers._OfRank.__init__": "data parallelism",
    "layers._OfRank.capture": "data parallelism",
    "layers.release": "after a failure",
    "redact.breathe": "a text of more than a window",
    "runner.give_up": "after a failure",
    "sender.Sender.close": "a sender that ends before its process does",
    "sender.Sender.give_up": "after a failure",
    "status.Status.fail": "after a failure",
    "status.Status.spoil": "after a failure",
    "status.Status.switch": "a change of state",
}
COMPILED = {"capture.keep_for_good"}
Fixtures = tuple[list[Sender], pytest.MonkeyPatch, pytest.LogCaptureFixture]
# What these cost is less than the tap: a label, or a Health that the sidecar then misses.
BORNE = {"identity._add_file", "identity._folder", "sender.Sender._health"}


@dataclass(frozen=True)
class Function:
    """One function of the tap and where it is looked up."""

    name: str
    owner: Any
    attribute: str
    value: Any


def functions() -> Iterator[Function]:
    """Yield the functions and methods that the tap's modules define."""
    for found in pkgutil.walk_packages(tap.__path__, f"{tap.__name__}."):
        module = importlib.import_module(found.name)
        short = found.name.rpartition(".")[2]
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                for inner, method in vars(value).items():
                    if is_of(module, method):
                        yield Function(f"{short}.{name}.{inner}", value, inner, method)
            elif is_of(module, value):
                yield Function(f"{short}.{name}", module, name, value)


def is_of(module: ModuleType, value: Any) -> bool:
    """Say whether ``value`` is a function written in ``module``."""
    function = inspect.unwrap(value) if callable(value) else value
    return inspect.isfunction(function) and function.__code__.co_filename == module.__file__


FUNCTIONS = {function.name: function for function in functions()}


@dataclass
class Fault:
    """Raises in place of a function of the tap, from call ``good`` on."""

    function: Function
    good: int = 0
    calls: int = 0

    def put(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replace the function wherever the tap has its name."""
        broken = self._broken()
        monkeypatch.setattr(self.function.owner, self.function.attribute, broken)
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{tap.__name__}."):
                for known, value in list(vars(module).items()):
                    if value is self.function.value:
                        monkeypatch.setattr(module, known, broken)

    def _broken(self) -> Any:
        @functools.wraps(self.function.value)
        def broken(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls > self.good:
                raise ZeroDivisionError("injected")
            return self.function.value(*args, **kwargs)

        return broken


@pytest.fixture
def senders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Sender]]:
    """Switch the tap on; return the senders that it makes."""
    monkeypatch.setenv("MOE_WATCH_SAMPLE_RATE", "1")
    monkeypatch.setattr("moe_watch.tap.send.sender._COLLECT_S", 0.002)  # the waits of hundreds of tests add up
    monkeypatch.setattr("moe_watch.tap.send.sender._IDLE_S", 0.02)
    with fake_worker.attaching(monkeypatch, tmp_path) as made:
        yield made


def serve_engine(kind: type[fake_worker.AttachedEngine] = fake_worker.AttachedEngine) -> list[int]:
    """Serve requests behind the real scheduler with the tap attached by its plugin; return the lengths of outputs."""
    engine = kind(seed=3, max_batched=256)
    generator = random.Random(3)  # noqa: S311
    for number in range(24):
        prompt = [20 + number] * generator.randint(1, 60)
        engine.add(fake_engine.Work(number, prompt, generator.randint(1, 8), 60))
    engine.run()
    return list(engine._outputs.values())


def serve_compiled() -> list[int]:
    """Do the same where the model's code is said to be compiled."""
    return serve_engine(fake_worker.TracedEngine)


def serve_api() -> list[tuple[int, str]]:
    """Answer requests behind the middleware, with statistics; return statuses and bodies."""
    return asyncio.run(fake_api.serve(24))


def assert_only_the_tap_is_off(
    name: str, senders: list[Sender], frames: list[wire.AnyFrame], caplog: pytest.LogCaptureFixture
) -> None:
    """Check that the failure is seen in ``Health``, or that the tap never started; and that the log says it once."""
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert 1 <= len(errors) <= 3, errors  # of two parts, and that a fault which cost frames does not end
    if any("could not start" in error for error in errors):
        return
    assert {sender.status.state for sender in senders} == {"off"}
    if not name.startswith("sender.") and not any(
        "failed in sender" in error for error in errors
    ):  # that one cannot send word of it
        assert [frame for frame in frames if isinstance(frame, wire.Health)][-1].state == "off"


def finish(senders: list[Sender], socket: zmq.Socket[bytes]) -> list[wire.AnyFrame]:
    """Let the senders send what they have; return what arrived."""
    for sender in senders:
        thread = vars(sender).get("_thread")
        until = time.monotonic() + PATIENCE_S
        while thread is not None and thread.is_alive() and not sender.connected and time.monotonic() < until:
            time.sleep(0.02)
        sender.stopping = True
        if thread is not None:
            sender._wake.set()
            thread.join(PATIENCE_S)
    sent = sum(vars(sender).get("sent", 0) for sender in senders)
    frames: list[wire.AnyFrame] = []
    while len(frames) < sent and socket.poll(PATIENCE_S * 1000):
        frames.append(wire.decode(socket.recv()))
    return frames


ENGINE_SIDE = ("attach", "capture", "counts", "finish_notes", "frames", "identity", "import_hook", "layers", "ledger",
               "plugin", "routing", "runner", "compatibility")  # fmt: skip
API_SIDE = ("asked", "bodies", "exchange", "api_sender", "latency", "redact", "middleware")
BOTH_SIDES = ("ids", "sender", "status", "enabled")


def of(*modules: str) -> list[str]:
    """Return the names of the functions of these modules that are called by others of the tap."""
    return sorted(name for name in FUNCTIONS if name.split(".")[0] in modules and name not in ENTRIES)


def check(name: str, serve: Callable[[], Any], good: int, fixtures: Fixtures) -> None:
    """Serve with the fault and compare."""
    senders, monkeypatch, caplog = fixtures
    fault = Fault(FUNCTIONS[name], good)
    with monkeypatch.context() as faulty, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(os.environ["MOE_WATCH_ENDPOINT"])
        fault.put(faulty)
        caplog.clear()
        served = serve()
        frames = finish(senders, socket)
    assert served == expected(serve)
    if fault.calls > good and name not in BORNE:
        assert_only_the_tap_is_off(name, senders, frames, caplog)
    if good == 0 and fault.calls == 0 and not (name.startswith(BOTH_SIDES) and serve is serve_api):
        assert name in ELSEWHERE, f"{name} was not reached: say why"


@functools.cache
def expected(serve: Callable[[], Any]) -> Any:
    """Return what is served while the tap is off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MOE_WATCH_ENDPOINT")
        api_sender.sender.cache_clear()
        return serve()


@pytest.mark.parametrize("good", [0, 4], ids=["from the start", "later"])
@pytest.mark.parametrize("name", of(*ENGINE_SIDE, *BOTH_SIDES))
def test_an_exception_in_the_engine_switches_the_tap_off_and_nothing_else(
    name: str, good: int, senders: list[Sender], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All requests get all their tokens, the state says off, the log says it once."""
    check(
        name,
        serve_compiled if name in COMPILED or "StepBuffer" in name else serve_engine,
        good,
        (senders, monkeypatch, caplog),
    )


@pytest.mark.parametrize("good", [0, 4], ids=["from the start", "later"])
@pytest.mark.parametrize("name", of(*API_SIDE, *BOTH_SIDES))
def test_an_exception_in_the_api_server_switches_the_tap_off_and_nothing_else(
    name: str, good: int, senders: list[Sender], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All clients get their answers, the state says off, the log says it once."""
    check(name, serve_api, good, (senders, monkeypatch, caplog))


def test_every_function_of_the_tap_is_held_to_it() -> None:
    """No module is forgotten, and no exception from the rule is out of date."""
    assert {name.split(".")[0] for name in FUNCTIONS} == {*ENGINE_SIDE, *API_SIDE, *BOTH_SIDES}
    assert set(FUNCTIONS) >= ENTRIES | BORNE | set(ELSEWHERE)


def test_a_hook_that_fails_does_not_fail_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of vLLM that is not what it was is imported all the same."""
    monkeypatch.delitem(sys.modules, "this", raising=False)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)

    def act(module: ModuleType) -> None:
        raise AttributeError(module.__name__)

    import_hook.when_imported("colorsys", act)
    assert importlib.import_module("colorsys").rgb_to_hls


def test_a_rebalance_goes_on_when_it_cannot_be_told() -> None:
    """EPLB moves its experts whatever becomes of the event."""

    def fail(kind: str, _: str) -> None:
        if kind == "eplb_rebalance":
            raise ZeroDivisionError("injected")

    sender = fake_engine.RecordingSender()
    runner = SimpleNamespace(eplb_state=SimpleNamespace(rearrange=lambda *_, **__: "moved"))
    attach._report_rebalances(runner, sender)  # type: ignore[arg-type]
    assert runner.eplb_state.rearrange() == "moved"
    assert sender.events == [("eplb_rebalance", "")]
    sender.event = fail  # type: ignore[method-assign]
    assert runner.eplb_state.rearrange() == "moved"
    assert sender.status.state == "off"


def test_status_of_a_failure_is_kept() -> None:
    """The first reason stays, however many failures follow."""
    status = Status()
    assert status.fail("here", ZeroDivisionError("first"))
    assert not status.fail("there", ZeroDivisionError("second"))
    assert (status.state, status.errors) == ("off", 2)
    assert "first" in status.reason
