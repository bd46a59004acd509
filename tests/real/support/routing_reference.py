"""What transformers routes for the same token ids on the same weights: the truth that the tap is held to."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM


class Reference:
    """A model in float32 whose routers are listened to."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in self.model.modules():
            if type(module).__name__.endswith("Router"):
                module.register_forward_hook(self._keep)

    def _keep(self, module: torch.nn.Module, inputs: object, output: Any) -> None:
        del inputs
        scores, chosen = output[0].float(), output[2]
        is_gemma = type(module).__name__ == "Gemma4TextRouter"  # returns probabilities where the others have logits
        self._seen.append((scores if is_gemma else scores.softmax(-1), chosen))

    @functools.lru_cache(maxsize=1024)  # noqa: B019 - lives as long as the tests
    def route(self, tokens: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the experts ``[layers, tokens, top_k]`` and probabilities ``[layers, tokens, experts]``."""
        self._seen.clear()
        with torch.no_grad():
            self.model(input_ids=torch.tensor([tokens]), use_cache=False)
        chosen = np.stack([chosen.numpy() for _, chosen in self._seen])
        return chosen, np.stack([probability.numpy() for probability, _ in self._seen])

    def counts(self, tokens: list[int], first: int, end: int) -> NDArray[np.uint32]:
        """Return the counts ``[layers, experts]`` of positions ``first`` to ``end`` of a text."""
        chosen, probability = self.route(tuple(tokens))
        experts = probability.shape[-1]
        rows = [np.bincount(layer[first:end].ravel(), minlength=experts) for layer in chosen]
        return np.stack(rows).astype(np.uint32)

    def confidence(self, prompt: list[int], cached: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return mean entropy and top-1 minus top-2 probability ``[layers]`` of 32 positions of a prompt at most."""
        measured = [at for at in range(0, len(prompt), -(-len(prompt) // 32)) if at >= cached]
        probability = self.route(tuple(prompt))[1][:, measured]
        best = np.sort(probability, -1)
        entropy = -(probability * np.log(np.maximum(probability, 1e-30))).sum(-1)
        return entropy.mean(1), (best[..., -1] - best[..., -2]).mean(1)
