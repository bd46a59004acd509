"""Puts the tap on a worker once its model is loaded."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from moe_watch.settings import TapSettings
from moe_watch.tap import endings, identity
from moe_watch.tap.sender import Sender
from moe_watch.tap.status import Status


def hook(module: ModuleType) -> None:
    """Make ``vllm.v1.worker.worker_base.WorkerWrapperBase`` attach the tap when its worker loads a model."""
    wrapper = module.WorkerWrapperBase
    init_device = wrapper.init_device

    @functools.wraps(init_device)
    def init_device_then_wait(self: Any) -> Any:
        result = init_device(self)
        worker, load_model = self.worker, self.worker.load_model

        @functools.wraps(load_model)
        def load_model_then_attach(*args: Any, **kwargs: Any) -> Any:
            result = load_model(*args, **kwargs)
            attach(worker)
            return result

        worker.load_model = load_model_then_attach
        return result

    wrapper.init_device = init_device_then_wait


def attach(worker: Any) -> None:
    """Start a sender in this process and tap the worker's model runner, or say why not; never raise."""
    status = Status()
    config = worker.vllm_config
    sender = Sender(TapSettings(), "engine", f"engine-{config.parallel_config.data_parallel_index}", status)
    try:
        from moe_watch.tap import runner

        runner.tap(worker.model_runner, config, sender)
    except Exception as error:  # noqa: BLE001 - whatever it is, serving goes on
        status.fail("attach", error)
        sender.event("tap_off", status.reason)
