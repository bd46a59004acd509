"""Read the routing of a transformers model: the reference that the tap's counts are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class RouterTap:
    """Keeps the logits and the chosen experts of every router of a Gemma-4 model, layer by layer, until cleared.

    ``logits[layer]`` is ``[tokens, experts]`` with its gradient, ``chosen[layer]`` is ``[tokens, top_k]``.
    """

    def __init__(self, model: nn.Module) -> None:
        """Add hooks to every router of ``model``; a dense model has none, and both lists stay empty."""
        self.logits: list[torch.Tensor] = []
        self.chosen: list[torch.Tensor] = []
        routers = [module for module in model.modules() if type(module).__name__ == "Gemma4TextRouter"]
        self._hooks = [router.register_forward_hook(self._keep_chosen) for router in routers]
        self._hooks += [router.proj.register_forward_hook(self._keep_logits) for router in routers]

    def clear(self) -> None:
        """Forget what was kept."""
        self.logits.clear()
        self.chosen.clear()

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _keep_logits(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self.logits.append(output.float())

    def _keep_chosen(self, _module: nn.Module, _inputs: object, output: Sequence[torch.Tensor]) -> None:
        self.chosen.append(output[2])


def fingerprints(model: nn.Module, ids: Sequence[Sequence[int]]) -> NDArray[np.uint32]:
    """Return the counts ``[requests, layers, experts]`` of a MoE for token ids, each request on its own."""
    tap = RouterTap(model)
    rows = []
    for request in ids:
        tap.clear()
        with torch.no_grad():
            model(input_ids=torch.tensor([list(request)]), use_cache=False)
        experts = tap.logits[0].shape[-1]
        rows.append(np.stack([np.bincount(c.flatten().numpy(), minlength=experts) for c in tap.chosen]))
    tap.close()
    return np.stack(rows).astype(np.uint32)
