"""Taps a model runner of either generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from moe_watch.tap import identity
from moe_watch.tap.capture import Capturer, bind, unbind
from moe_watch.tap.counts import Counts, Shape
from moe_watch.tap.routing import RoutingTap
from moe_watch.tap.sender import Sender


def tap(runner: Any, config: Any, sender: Sender) -> None:
    """Tap ``runner``, whose model is loaded."""
    model = runner.get_model()
    layers = moe_layers(model)
    if not layers:
        sender.status.switch("dense", "")
        sender.announce(identity.announce(config, None, [], "v1", ""))
        return
    first = layers[0]
    shape = Shape(len(layers), first.moe_config.num_logical_experts, first.moe_config.experts_per_token)
    layer_ids = [layer.layer_id for layer in layers]
    scheduler = config.scheduler_config
    capturer = Capturer(layer_ids, scheduler.max_num_batched_tokens, shape.top_k, runner.device)
    slots = 2 * scheduler.max_num_seqs
    bind(model, capturer)
    sender.announce(identity.announce(config, shape, layer_ids, "v1", ""))
    sender.event("engine_start", identity.served_name(config))
    routing = RoutingTap(capturer, Counts(slots, shape, runner.device), slots, identity.served_name(config), sender)
    watch(runner, model, routing)


def moe_layers(model: Any) -> list[Any]:
    """Return the modules of ``model`` that route tokens to experts."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner

    return [module for module in model.modules() if isinstance(module, MoERunner)]


def watch(runner: Any, model: Any, routing: RoutingTap) -> None:
    """Put ``routing`` around every step of ``runner``; on its first exception take it off again."""
    run = runner.execute_model

    def guarded(what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
            del runner.execute_model
            unbind(model)
            if routing.status.fail("routing", error):
                routing.sender.event("tap_off", routing.status.reason)

    def execute_model(scheduled: Any, *args: Any, **kwargs: Any) -> Any:
        guarded(lambda: routing.begin(scheduled))
        result = run(scheduled, *args, **kwargs)
        if scheduled.total_num_scheduled_tokens:
            guarded(lambda: routing.end(order_v1(runner)))
        return result

    runner.execute_model = execute_model


def order_v1(runner: Any) -> Sequence[str]:
    """Return the request ids of the batch, in its order, in ``vllm.v1.worker.gpu_model_runner``."""
    return list(runner.input_batch.req_ids)
