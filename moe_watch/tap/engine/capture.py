"""Keeps what every layer's router chose until it is counted: eager, compiled or in a CUDA graph.

On a CPU several steps are kept one behind the other, so that they are counted together: by reference in eager code,
where a copy per layer would cost more than all else, in a static buffer in compiled code. Under CUDA graphs addresses
are baked in, so there each step begins at row 0 of the buffer and is counted before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

NOTHING: Final = -1  # an id that no router gives: a row that a layer did not write
_FAILED: Final = -2  # in the place of a first row
_AHEAD: Final = 4096  # rows for more steps, on a CPU
# CUDA graphs go on writing to the addresses that they were captured with, whether the tap is on or off, and nobody can
# tell them to stop: what they may write to is never freed, however the tap ends.
_FOR_GOOD: Final[list[object]] = []


def keep_for_good(written: object) -> None:
    """Hold what captured graphs write to until the process ends."""
    _FOR_GOOD.append(written)


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
    """``[layers, rows, width]``, static; the rows of a step are written layer by layer."""

    def __init__(
        self,
        layers: int,
        rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        marked: bool,
    ) -> None:
        self.all = torch.zeros((layers, rows, width), dtype=dtype, device=device)
        self.first = torch.full((), NOTHING, dtype=torch.int64)  # on the host: read by the traced operator
        keep_for_good((self.all, self.first))
        self._marked = marked  # what a layer does not write says NOTHING
        self._used = 0
        self._views: Sequence[torch.Tensor] = ()

    def expect(self, rows: int) -> None:
        """Take the next step's ``rows`` behind those that are kept."""
        step = self.all[:, self._used : self._used + rows]
        if self._marked:
            step.fill_(NOTHING)
        self.first.fill_(self._used)
        self._views = step.unbind(0)

    def write(self, values: torch.Tensor, layer: int) -> None:
        """Copy ``values`` [rows, width] of the step at hand; part of the traced graph."""
        if torch.compiler.is_compiling():
            torch.ops.moe_watch.store(values, self.all, self.first, layer)
        elif self._views and self._views[layer].shape == values.shape:
            self._views[layer].copy_(values)
        else:
            _store(values, self.all, self.first, layer)

    def end(self) -> None:
        """Keep the step that was expected; ignore what comes now, where that can be: not in compiled CUDA code.

        Raises ``RuntimeError`` when a row of this step could not be written.
        """
        failed = int(self.first) == _FAILED
        self.first.fill_(NOTHING)
        if failed:
            raise RuntimeError("a layer's values could not be kept")
        self._used += self._views[0].shape[0] if self._views else 0
        self._views = ()

    def taken(self) -> torch.Tensor:
        """Return what was kept: [layers, rows, width]."""
        return self.all[:, : self._used]

    def clear(self) -> None:
        """Forget what was kept."""
        self._used = 0


class StepList:
    """The same for eager code on a CPU: tensors are kept as they come and put together when their step is over."""

    def __init__(self, layers: int, width: int, dtype: torch.dtype, *, copied: bool) -> None:
        self._width, self._dtype = width, dtype
        self._copied = copied  # where later code of a layer may write into what it has shown
        self._nothing: list[torch.Tensor | None] = [None] * layers
        self._step = self._nothing.copy()
        self._rows = 0  # of the step at hand
        self._steps: list[torch.Tensor] = []

    def expect(self, rows: int) -> None:
        """Take the next step's ``rows``."""
        self._rows = rows

    def write(self, values: torch.Tensor, layer: int) -> None:
        """Keep ``values`` [rows, width] of the step at hand."""
        if self._rows:
            self._step[layer] = values.clone() if self._copied else values

    def end(self) -> None:
        """Put the step together, if one was expected; ignore what comes now."""
        if not self._rows:
            return
        try:
            step = torch.stack(self._step)  # None where a layer said nothing
        except (TypeError, RuntimeError):
            step = self._mended()
        self._steps.append(step if step.shape[1] == self._rows else self._mended())
        self._step, self._rows = self._nothing.copy(), 0

    def taken(self) -> torch.Tensor:
        """Return what was kept: [layers, rows, width]."""
        return torch.cat(self._steps, 1)

    def clear(self) -> None:
        """Forget what was kept."""
        self._steps = []

    def _mended(self) -> torch.Tensor:
        """Return the step at hand with ``NOTHING`` where a layer said nothing, and without rows beyond the step's."""
        step = torch.full((len(self._step), self._rows, self._width), NOTHING, dtype=self._dtype)
        for row, values in zip(step, self._step, strict=True):
            if values is not None:
                row[: len(values)] = values[: self._rows]
        return step


class Capturer:
    """What ``bind_routed_experts_capturer`` binds: keeps which experts every layer chose, and its router's logits.

    ``single``: a step is counted before the next, and begins at row 0. ``traced``: the model's code is compiled.
    """

    def __init__(
        self,
        layer_ids: Sequence[int],
        tokens: int,
        top_k: int,
        device: torch.device,
        *,
        single: bool,
        traced: bool = False,
    ) -> None:
        self.single = single
        self.rows = tokens if single else tokens + _AHEAD
        self.row_of = {layer: row for row, layer in enumerate(layer_ids)}
        self._static = single or traced
        self._device = device
        self._used = 0
        self.failed = False  # a call from the forward pass raised
        self.ids = self._buffer(top_k, torch.int32, ids=True)
        self.logits: StepBuffer | StepList | None = None

    def capture(self, layer_id: int, topk_ids: torch.Tensor) -> None:
        """Keep the expert ids [tokens, top_k] that layer ``layer_id`` chose."""
        self.ids.write(topk_ids, self.row_of[layer_id])

    def keep_logits(self, experts: int, dtype: torch.dtype) -> None:
        """Keep router logits too."""
        self.logits = self._buffer(experts, dtype, ids=False)

    def has_room(self, tokens: int) -> bool:
        """Say whether a step of ``tokens`` fits behind those that are kept."""
        return self._used + tokens <= self.rows

    def begin(self, tokens: int, *, with_logits: bool) -> None:
        """Expect a step of ``tokens``."""
        self._used += tokens
        self.ids.expect(tokens)
        if self.logits is not None and with_logits:
            self.logits.expect(tokens)

    def end(self) -> None:
        """Keep what was written; what runs between steps is no request's.

        Raises ``RuntimeError`` when the forward pass could not be listened to.
        """
        if self.failed:
            raise RuntimeError("a layer could not be listened to")
        self.ids.end()
        if self.logits is not None:
            self.logits.end()

    def clear(self) -> None:
        """Forget what was kept."""
        self._used = 0
        self.ids.clear()
        if self.logits is not None:
            self.logits.clear()

    def _buffer(self, width: int, dtype: torch.dtype, *, ids: bool) -> StepBuffer | StepList:
        layers = len(self.row_of)
        if self._static:
            return StepBuffer(layers, self.rows, width, dtype, self._device, marked=ids)
        return StepList(layers, width, dtype, copied=not ids)
