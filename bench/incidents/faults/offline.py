"""The models in transformers, broken by the same faults: cheap enough for hundreds of healthy rounds.

It has no engine: prompts are computed whole, a group at a time, padded, and only the next token is chosen. So faults of
steps of few tokens cannot be made. What stands for a load is the size of the groups, whose members change from round to
round; noisy, every matrix product sums in a random order, as in ``noise``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.incidents.faults import routers, weights
from bench.incidents.faults.running import canaries, checkpoint
from bench.incidents.faults.undo import Undo
from moe_watch.canary.reference import token_digest
from moe_watch.canary.replay import padded
from moe_watch.detect.canary.replay import Replay, Round

LOADS = {"4": 4, "16": 16}
WITHOUT = ("coarse_router_small_batch",)
_STEP = 16


@dataclass
class _Router:
    """What the faults expect of vLLM's router."""

    global_num_experts: int
    top_k: int
    told: list[torch.Tensor] = field(default_factory=list)

    def _compute_routing(self, _states: Any, logits: torch.Tensor, _type: Any, *, input_ids: Any = None) -> Any:
        del input_ids
        values, ids = logits.float().softmax(-1).topk(self.top_k)
        return values / values.sum(-1, keepdim=True), ids

    def _apply_eplb_mapping(self, ids: torch.Tensor) -> torch.Tensor:
        return ids

    def capture_fn(self, ids: torch.Tensor) -> None:
        self.told.append(ids)


@dataclass
class _Gate:
    weight: torch.Tensor
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.product(x, self.weight), None


@dataclass
class _Layer:
    """What the faults expect of a layer with experts."""

    router: _Router
    gate: _Gate
    experts: Any
    plain: dict[str, torch.Tensor]
    gate_weight: torch.Tensor
    mlp: Any  # what runs beside the experts, None where nothing does
    before: Callable[[torch.Tensor], torch.Tensor]  # what the router does to its input
    scale: torch.Tensor | None  # [experts] of the experts' weights, which then stay in float32

    def set_experts(self, name: str, values: torch.Tensor) -> None:
        target = self.experts.gate_up_proj if name == "w13_weight" else self.experts.down_proj
        target.data.copy_(values)

    def route(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Do what the model's router does, in the steps in which vLLM does it."""
        logits, _ = self.gate.forward(self.before(states))
        values, ids = self.router._compute_routing(states, logits, None)  # noqa: SLF001 - what faults override
        self.router.capture_fn(ids)
        scaled = values.to(states.dtype) if self.scale is None else values * self.scale[ids.long()]
        return logits, scaled, self.router._apply_eplb_mapping(ids).long()  # noqa: SLF001


class Model:
    """The model, and the tokens of the canaries."""

    def __init__(self, setting: str) -> None:
        torch.set_num_threads(1)
        self.noisy = setting.endswith("noisy")
        path = checkpoint(setting)
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._model.set_experts_implementation("eager")
        self._layers = [self._tapped(layer) for layer in self._model.model.layers]
        for module in self._model.modules():
            if isinstance(module, torch.nn.Linear):
                module.forward = lambda x, m=module: self._product(x, m.weight)
        tokenizer = AutoTokenizer.from_pretrained(path)
        asked = [list(prompt.messages) for prompt in canaries(setting).prompts]
        texts = [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in asked]
        self._ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        self._undo = Undo()

    def _product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if not self.noisy:
            return functional.linear(x, weight)
        cut = _STEP * int(torch.randint(1, x.shape[-1] // _STEP, (1,)))
        return functional.linear(x[..., :cut], weight[:, :cut]) + functional.linear(x[..., cut:], weight[:, cut:])

    def _tapped(self, decoder: Any) -> _Layer:
        """Put the faults' view of a layer in place of its router: of Gemma 4, or of Qwen3-MoE."""
        gemma = hasattr(decoder, "router")
        router, experts = (decoder.router, decoder.experts) if gemma else (decoder.mlp.gate, decoder.mlp.experts)
        weight = (router.proj if gemma else router).weight.detach()
        plain = {"w13_weight": experts.gate_up_proj, "w2_weight": experts.down_proj}
        layer = _Layer(
            _Router(len(weight), router.config.top_k_experts if gemma else router.top_k),
            _Gate(weight, self._product),
            experts,
            {name: values.detach().clone() for name, values in plain.items()},
            weight,
            decoder.mlp if gemma else None,
            (lambda x: router.norm(x) * router.scale * router.scalar_root_size) if gemma else (lambda x: x),
            router.per_expert_scale.detach() if gemma else None,
        )
        router.forward = layer.route
        return layer

    def inject(self, name: str) -> None:
        """Break the model by the fault called ``name``."""
        if name == "held_kernels":
            before, self.noisy = self.noisy, True
            self._undo.steps.append(lambda: setattr(self, "noisy", before))
            return
        (routers.FAULTS | weights.FAULTS)[name](self._layers, self._undo)

    def mend(self) -> None:
        """Take the fault out again."""
        for step in reversed(self._undo.steps):
            step()
        self._undo = Undo()

    def round(self, seed: int) -> Round:
        """Replay all canaries at each load, in groups drawn with ``seed``."""
        random = np.random.default_rng(seed)
        return Round(tuple(self._replay(load, size, random) for load, size in LOADS.items()))

    @torch.inference_mode()
    def _replay(self, load: str, size: int, random: np.random.Generator) -> Replay:
        order, n = random.permutation(len(self._ids)), len(self._ids)
        shape = (n, len(self._layers), self._layers[0].router.global_num_experts)
        counts, scored = np.zeros(shape, np.uint32), [[np.nan]] * n
        output, output_logprob = np.zeros((n, 1), np.int32), np.zeros((n, 1), np.float32)
        for start in range(0, n, size):
            group = order[start : start + size].tolist()
            logprobs, chosen = self._forward([self._ids[i] for i in group])
            for row, index in enumerate(group):
                ids = self._ids[index]
                counts[index] = chosen[row]
                steps = logprobs[row, : len(ids)]
                scored[index] = [np.nan, *steps[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()]
                output[index], output_logprob[index] = int(steps[-1].argmax()), float(steps[-1].max())
        return Replay(
            load=load,
            top_k=self._layers[0].router.top_k,
            prompt=counts,
            decode=np.zeros(shape, np.uint32),
            prompt_tokens=np.array([len(ids) for ids in self._ids], np.int64),
            prompt_digest=np.array([token_digest(ids) for ids in self._ids], np.uint64),
            output=output,
            prompt_logprob=padded(scored, np.nan, np.float32),
            output_logprob=output_logprob,
        )

    def _forward(self, group: Sequence[list[int]]) -> tuple[torch.Tensor, np.ndarray]:
        """Return log-probabilities ``[group, tokens, vocabulary]`` and counts ``[group, layers, experts]``."""
        ids = torch.from_numpy(padded(group, 0, np.int64))
        real = torch.arange(ids.shape[1]) < torch.tensor([len(one) for one in group])[:, None]
        for layer in self._layers:
            layer.router.told.clear()
        logits = self._model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        counts = np.zeros((len(group), len(self._layers), self._layers[0].router.global_num_experts), np.uint32)
        for at, layer in enumerate(self._layers):
            chosen = layer.router.told[0].reshape(*ids.shape, -1)
            for row in range(len(group)):
                taken = chosen[row][real[row]].flatten().numpy()
                counts[row, at] = np.bincount(taken, minlength=counts.shape[2])
        return logits.float().log_softmax(-1), counts
