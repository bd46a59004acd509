"""vLLM's worker extension that breaks the loaded model in place, on request, and mends it again.

``--worker-extension-cls bench.incidents.faults.worker.Faults`` adds ``inject_fault`` and ``mend`` to the worker; vLLM's
own development endpoint ``/collective_rpc`` calls them. Importing this module keeps the experts' weights as they were
before vLLM packs them for its kernel, because faults need them in their natural layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm._custom_ops import cpu_prepack_moe_weight
from vllm.model_executor.layers.fused_moe import GateLinear, MoERunner
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

from bench.incidents.faults import noise, routers, weights
from bench.incidents.faults.undo import Undo

PLAIN: dict[int, dict[str, torch.Tensor]] = {}
"""Weights of each layer's experts before packing, by id of the module that holds them."""

_process = CPUUnquantizedExperts.process_weights_after_loading


def _process_and_keep(self: Any, layer: torch.nn.Module) -> None:
    names = ("w13_weight", "w2_weight")
    PLAIN[id(layer)] = {name: getattr(layer, name).detach().clone() for name in names} | {"isa": self.isa}
    _process(self, layer)


CPUUnquantizedExperts.process_weights_after_loading = _process_and_keep


@dataclass
class Layer:
    """One layer with experts of the live model."""

    router: Any
    gate: Any
    experts: Any  # holds w13_weight and w2_weight, packed
    mlp: Any  # what runs beside the experts, None where nothing does
    plain: dict[str, Any]
    gate_weight: torch.Tensor

    def set_experts(self, name: str, values: torch.Tensor) -> None:
        """Replace ``w13_weight`` or ``w2_weight`` of all experts, given in their natural layout."""
        packed = cpu_prepack_moe_weight(values.to(self.plain[name].dtype), self.plain["isa"])
        getattr(self.experts, name).data.copy_(packed)


class Faults:
    """Methods that vLLM adds to its worker."""

    def inject_fault(self, name: str) -> dict[str, Any]:
        """Mend the model, then break it by the fault called ``name``; returns the number of layers."""
        self.mend()
        layers = _layers(self.model_runner.model)  # type: ignore[attr-defined]
        undo = Undo()
        (routers.FAULTS | weights.FAULTS)[name](layers, undo)
        self.fault_undo = undo
        return {"layers": len(layers)}

    def mend(self) -> dict[str, Any]:
        """Take the last fault out again."""
        for step in reversed(getattr(self, "fault_undo", Undo()).steps):
            step()
        self.fault_undo = Undo()
        return {}

    def set_noise(self, on: str) -> dict[str, Any]:
        """Let matrix products sum in a random order ("1") or as vLLM does ("0")."""
        noise.switch(on=on == "1")
        return {}


def _layers(model: torch.nn.Module) -> list[Layer]:
    runners = [(name, module) for name, module in model.named_modules() if isinstance(module, MoERunner)]
    gates = [module for module in model.modules() if isinstance(module, GateLinear)]
    found = []
    for (name, runner), gate in zip(runners, gates, strict=True):
        experts = next(m for m in runner.modules() if id(m) in PLAIN)
        parent = model.get_submodule(name.rpartition(".")[0])
        beside = getattr(parent, "mlp", None)
        found.append(Layer(runner.router, gate, experts, beside, PLAIN[id(experts)], noise.plain_weight(gate)))
    return found
