"""What the tap adds to the forward pass can be traced whole, and cannot break it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("vllm")

import torch

from moe_watch.tap.engine import capture, layers

IDS = [[0, 3], [2, 1], [3, 0]]


def capturer() -> capture.Capturer:
    """Return one for a compiled model of two layers."""
    return capture.Capturer([4, 7], 8, 2, torch.device("cpu"), single=False, traced=True)


def compiled(listener: layers._Unfelt) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a forward pass of two layers, compiled as vLLM does: in one graph, or not at all."""

    def forward(ids: torch.Tensor) -> torch.Tensor:
        listener.capture(4, ids)
        listener.capture(7, ids + 1)
        return ids * 2

    torch._dynamo.reset()
    return torch.compile(forward, fullgraph=True, backend="aot_eager")  # type: ignore[no-any-return]


def test_one_graph_writes_every_step_where_it_is_expected() -> None:
    """Steps of other lengths, and what runs between steps, need no new graph and no place."""
    kept = capturer()
    forward = compiled(layers._Unfelt(kept, kept))
    ids = torch.tensor(IDS, dtype=torch.int32)
    forward(ids)  # a warm-up: nobody expects it
    for rows in (ids, ids[:2]):
        kept.begin(len(rows), with_logits=False)
        forward(rows)
        kept.end()
        forward(ids)
    assert kept.ids.taken()[0].tolist() == IDS + IDS[:2]
    assert kept.ids.taken()[1].tolist() == [[a + 1, b + 1] for a, b in IDS + IDS[:2]]


def test_a_fault_while_it_is_traced_is_not_felt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model compiles and computes; the tap learns of it after the step."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    kept = capturer()
    monkeypatch.setattr(capture.Capturer, "capture", fail)
    forward = compiled(layers._Unfelt(kept, kept))
    kept.begin(3, with_logits=False)
    assert forward(torch.tensor(IDS)).tolist() == [[2 * a, 2 * b] for a, b in IDS]
    with pytest.raises(RuntimeError, match="could not be listened to"):
        kept.end()


def test_a_fault_while_a_compiled_step_runs_is_not_felt() -> None:
    """More rows than there is room for are an error of the tap, not of the model."""
    kept = capturer()
    forward = compiled(layers._Unfelt(kept, kept))
    kept.begin(3, with_logits=False)
    kept.ids.first.fill_(kept.rows - 1)
    assert forward(torch.tensor(IDS, dtype=torch.int32)).shape == (3, 2)
    with pytest.raises(RuntimeError, match="could not be kept"):
        kept.end()
