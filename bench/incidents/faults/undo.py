"""How a fault is taken out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bench.incidents.faults.worker import Layer


@dataclass
class Undo:
    """What has to be done to mend the model."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of one object, to be removed again."""
        before = owner.__dict__.get(name, ...)
        object.__setattr__(owner, name, value)
        self.steps.append(
            lambda: owner.__dict__.pop(name) if before is ... else object.__setattr__(owner, name, before)
        )

    def experts(self, layer: Layer, name: str, values: torch.Tensor) -> None:
        """Replace weights of a layer's experts, to be restored."""
        layer.set_experts(name, values)
        self.steps.append(lambda: layer.set_experts(name, layer.plain[name]))
