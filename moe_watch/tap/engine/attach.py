"""Puts the tap on a worker once its model is loaded, or says why not."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from moe_watch.settings import TapSettings
from moe_watch.tap.engine import compatibility, identity, layers
from moe_watch.tap.engine.capture import Capturer
from moe_watch.tap.engine.counts import Counts, Shape
from moe_watch.tap.engine.routing import RoutingTap
from moe_watch.tap.engine.runner import generation, unwatched, watch
from moe_watch.tap.send.sender import Sender
from moe_watch.tap.send.status import Status, log


def hook(module: ModuleType) -> None:
    """Make ``vllm.v1.worker.worker_base.WorkerWrapperBase`` attach the tap when its worker has loaded a model."""
    wrapper = module.WorkerWrapperBase
    init_device = wrapper.init_device

    @functools.wraps(init_device)
    def init_device_then_await_model(self: Any) -> Any:
        result = init_device(self)
        worker, load_model = self.worker, self.worker.load_model

        @functools.wraps(load_model)
        def load_model_then_attach(*args: Any, **kwargs: Any) -> Any:
            result = load_model(*args, **kwargs)
            try:
                attach(worker)
            except Exception:  # noqa: BLE001 - whatever it is, serving goes on
                log.exception("moe-watch tap could not start; serving goes on")
            return result

        worker.load_model = load_model_then_attach
        return result

    wrapper.init_device = init_device_then_await_model


def attach(worker: Any) -> None:
    """Start this process's sender and tap the worker's model runner; raise only what the sender itself raises."""
    from vllm.distributed.parallel_state import get_tp_group

    if get_tp_group().rank_in_group != 0:
        return  # routing is the same on every rank of a tensor-parallel group: the first one reports
    rank = worker.vllm_config.parallel_config.data_parallel_index
    sender = Sender(TapSettings(), "engine", f"engine-{rank}", Status())
    try:
        tap(worker.model_runner, worker.vllm_config, sender)
        worker.compile_or_warm_up_model = unwatched(worker, worker.compile_or_warm_up_model)
    except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
        sender.give_up("attach", error)
        layers.release(worker.model_runner.get_model())


def tap(runner: Any, config: Any, sender: Sender) -> None:
    """Tap ``runner``, whose model is loaded, and announce what it serves."""
    import vllm

    found = layers.find(runner.get_model())
    if not found:
        _without_experts(runner, config, sender)
        return
    reason = compatibility.refusal(config, runner.device.type, vllm.__version__) or compatibility.layers_refusal(found)
    try:
        shape = layers.shape(found, config)
        sender.announce(identity.announce(config, generation(runner), shape, found))
        if not reason:
            _start(runner, config, sender, found, shape)
    except ValueError as error:  # vLLM's words for a router or kernel that cannot be listened to
        layers.release(runner.get_model())
        reason = str(error)
    if reason:
        sender.status.switch("refused", reason)
        sender.event("tap_refused", reason)


def _start(runner: Any, config: Any, sender: Sender, found: list[Any], shape: Shape) -> None:
    parallel, scheduler, device = (
        config.parallel_config,
        config.scheduler_config,
        runner.device,
    )
    capturer = Capturer(
        [layer.layer_id for layer in found],
        scheduler.max_num_batched_tokens,
        shape.top_k,
        device,
        single=device.type != "cpu" or parallel.data_parallel_size > 1,
        traced=config.compilation_config.mode != 0,
    )
    layers.bind(runner.get_model(), capturer, config)
    if sender.settings.confidence and not layers.bind_logits(found, capturer, shape, config):
        log.info("moe-watch tap: no confidence, because this model's router logits cannot be had")
    slots = 2 * scheduler.max_num_seqs  # preempted requests keep theirs
    name = identity.served_name(config)
    watch(runner, RoutingTap(capturer, Counts(slots, shape, device), slots, name, sender))
    _report_rebalances(runner, sender)
    sender.event("engine_start", name)


def _without_experts(runner: Any, config: Any, sender: Sender) -> None:
    if config.model_config.is_moe:
        reason = "none of this model's MoE layers is of a kind that vLLM can listen to"
        sender.status.switch("refused", reason)
        sender.event("tap_refused", reason)
        return
    sender.status.switch("dense", "the model has no experts")
    sender.announce(identity.announce(config, generation(runner), None, []))
    sender.event("engine_start", identity.served_name(config))


def _report_rebalances(runner: Any, sender: Sender) -> None:
    """Send an event whenever EPLB moves experts between ranks."""
    state = getattr(runner, "eplb_state", None)
    if state is None:
        return
    rearrange = state.rearrange

    @functools.wraps(rearrange)
    def rearrange_and_tell(is_profile: bool = False, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002 - vLLM's
        result = rearrange(is_profile, *args, **kwargs)
        if not is_profile:
            try:
                sender.event("eplb_rebalance", "")
            except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
                sender.give_up("eplb", error)
        return result

    state.rearrange = rearrange_and_tell
