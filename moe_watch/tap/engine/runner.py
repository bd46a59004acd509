"""Puts the tap around the steps of a model runner of either generation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from moe_watch.tap.engine import layers
from moe_watch.tap.engine.routing import RoutingTap
from moe_watch.tap.send.status import log


def generation(runner: Any) -> str:
    """Return ``v2`` for ``vllm.v1.worker.gpu.model_runner``, ``v1`` for ``vllm.v1.worker.gpu_model_runner``."""
    return "v2" if hasattr(runner, "req_states") else "v1"


def order(runner: Any) -> Sequence[str]:
    """Return the engine's request ids of the step that ``runner`` just executed, in the order of their rows."""
    if generation(runner) == "v2":
        return list(runner.execute_model_state.input_batch.req_ids)
    return list(runner.input_batch.req_ids)


def watch(runner: Any, routing: RoutingTap) -> None:
    """Put ``routing`` around every step of ``runner``; on its first exception take it off again."""
    execute, dummy = runner.execute_model, runner._dummy_run  # noqa: SLF001

    def guarded(step: Callable[..., None], *args: Any) -> None:
        if routing.status.state not in {"on", "blind"}:
            return
        try:
            step(*args)
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            give_up(runner, routing, error)

    def end() -> None:
        routing.end(order(runner))

    @functools.wraps(execute)
    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("dummy_run"):
            return execute(scheduled, *args, **kwargs)
        guarded(routing.begin, scheduled)
        result = execute(scheduled, *args, **kwargs)
        if scheduled.total_num_scheduled_tokens:
            guarded(end)
        return result

    @functools.wraps(dummy)
    def dummy_run(*args: Any, **kwargs: Any) -> Any:
        if routing.capturer.single:  # it would overwrite what is not counted yet
            guarded(routing.settle)
        return dummy(*args, **kwargs)

    runner.execute_model, runner._dummy_run = execute_model, dummy_run  # noqa: SLF001


def unwatched(worker: Any, warm_up: Callable[[], Any]) -> Callable[[], Any]:
    """Return ``warm_up`` of ``worker`` made to run as if nobody watched its runner.

    V2's warm-up executes made-up requests that pass for real ones (``vllm.v1.worker.gpu.warmup``).
    """

    @functools.wraps(warm_up)
    def warm_up_unwatched() -> Any:
        own = worker.model_runner.__dict__
        watched = {name: own.pop(name) for name in ("execute_model", "_dummy_run") if name in own}
        try:
            return warm_up()
        finally:
            own.update(watched)

    return warm_up_unwatched


def give_up(runner: Any, routing: RoutingTap, error: Exception) -> None:
    """Take the tap off ``runner`` and say why; never raise."""
    for name in ("execute_model", "_dummy_run"):
        runner.__dict__.pop(name, None)
    routing.sender.give_up("routing", error)
    try:
        layers.release(runner.get_model())
    except Exception:  # noqa: BLE001 - whatever it is, serving goes on
        log.exception("moe-watch tap could not let go of the model; serving goes on")
