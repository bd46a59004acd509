"""Static buffers that the forward pass writes every layer's routing into: eager, compiled or in a CUDA graph.

On a CPU a buffer holds several steps one behind the other, so that they are counted together. Under CUDA graphs
addresses are baked in, so there each step begins at row 0 and is counted before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

NOTHING: Final = -1  # an id that no router gives: a row that a layer did not write
_FAILED: Final = -2  # in the place of a first row
_AHEAD: Final = 4096  # rows for more steps, on a CPU


def _store(values: torch.Tensor, buffer: torch.Tensor, first: torch.Tensor, layer: int) -> None:
    """Copy ``values`` [n, k] to ``buffer`` [layers, rows, k] from row ``first`` on; nowhere when it is negative."""
    try:
        row = 0 if buffer.is_cuda else int(first)
        if row >= 0:
            buffer[layer, row : row + len(values)].copy_(values)
    except Exception:  # noqa: BLE001 - inside the forward pass: whatever it is, serving goes on
        first.fill_(_FAILED)


def _store_fake(values: torch.Tensor, buffer: torch.Tensor, first: torch.Tensor, layer: int) -> None:
    """Return nothing, for tracing."""


_LIBRARY: Final = torch.library.Library("moe_watch", "FRAGMENT")
if not hasattr(torch.ops.moe_watch, "store"):
    _LIBRARY.define("store(Tensor values, Tensor(a!) buffer, Tensor first, int layer) -> ()")
    _LIBRARY.impl("store", _store, "CompositeExplicitAutograd")
    torch.library.register_fake("moe_watch::store", _store_fake, lib=_LIBRARY)


class StepBuffer:
    """``[layers, rows, width]``; the rows of a step are written layer by layer."""

    def __init__(
        self,
        layers: int,
        rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.all = torch.zeros((layers, rows, width), dtype=dtype, device=device)
        self.first = torch.full((), NOTHING, dtype=torch.int64)  # on the host: read by the traced operator
        self._views: Sequence[torch.Tensor] = ()

    def expect(self, first: int, rows: int) -> None:
        """Take the next step's ``rows`` from row ``first`` on."""
        self.first.fill_(first)
        self._views = self.all[:, first : first + rows].unbind(0)

    def ignore(self) -> None:
        """Keep nothing of the next step, where that can be chosen: not in compiled CUDA code.

        Raises ``RuntimeError`` when a row of this step could not be written.
        """
        failed = int(self.first) == _FAILED
        self.first.fill_(NOTHING)
        if failed:
            raise RuntimeError("a layer's values could not be kept")
        self._views = ()

    def write(self, values: torch.Tensor, layer: int) -> None:
        """Copy ``values`` [rows, width] of the step at hand; part of the traced graph."""
        if torch.compiler.is_compiling():
            torch.ops.moe_watch.store(values, self.all, self.first, layer)
        elif self._views and self._views[layer].shape == values.shape:
            self._views[layer].copy_(values)
        else:
            _store(values, self.all, self.first, layer)


class Capturer:
    """What ``bind_routed_experts_capturer`` binds: keeps which experts every layer chose, and its router's logits.

    ``ids`` is ``[layers, rows, top_k]``; ``logits`` ``[layers, rows, experts]``, or None. ``single``: a step always
    begins at row 0.
    """

    def __init__(
        self,
        layer_ids: Sequence[int],
        tokens: int,
        top_k: int,
        device: torch.device,
        *,
        single: bool,
    ) -> None:
        self.single = single
        self.rows = tokens if single else tokens + _AHEAD
        self.used = 0
        self.ids = StepBuffer(len(layer_ids), self.rows, top_k, torch.int32, device)
        self.ids.all.fill_(NOTHING)
        self.logits: StepBuffer | None = None
        self.failed = False  # a call from the forward pass raised
        self.row_of = {layer: row for row, layer in enumerate(layer_ids)}

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Keep the expert ids [tokens, top_k] that layer ``layer_id`` chose."""
        self.ids.write(topk_ids, self.row_of[layer_id])

    def keep_logits(self, experts: int, dtype: torch.dtype) -> None:
        """Make room for router logits."""
        layers, rows, _ = self.ids.all.shape
        self.logits = StepBuffer(layers, rows, experts, dtype, self.ids.all.device)

    def has_room(self, tokens: int) -> bool:
        """Say whether a step of ``tokens`` fits behind those that are kept."""
        return self.used + tokens <= self.rows

    def begin(self, tokens: int, *, with_logits: bool) -> None:
        """Expect a step of ``tokens``; a row that a layer will not write says ``NOTHING``."""
        if self.single:
            self.ids.all[:, :tokens].fill_(NOTHING)
        self.ids.expect(self.used, tokens)
        if self.logits is not None and with_logits:
            self.logits.expect(self.used, tokens)

    def end(self, tokens: int) -> None:
        """Keep the ``tokens`` of the step that is done; what runs between steps is no request's.

        Raises ``RuntimeError`` when the forward pass could not be listened to.
        """
        if self.failed:
            raise RuntimeError("a layer could not be listened to")
        self.used += tokens
        self.ids.ignore()
        if self.logits is not None:
            self.logits.ignore()

    def clear(self) -> None:
        """Forget what was kept."""
        if not self.single:
            self.ids.all[:, : self.used].fill_(NOTHING)
        self.used = 0
