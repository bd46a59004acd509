"""What is kept of a step is what its layers said in it, wherever it is kept; and how sure a router was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from moe_watch.tap.engine.capture import NOTHING, Capturer  # noqa: E402 - it needs torch
from moe_watch.tap.engine.counts import confidence  # noqa: E402

LAYERS = [3, 5]
KEPT = pytest.mark.parametrize("traced", [False, True], ids=["eager", "compiled"])


def capturer(*, traced: bool) -> Capturer:
    """Return one for two layers, top-2, with logits of four experts."""
    made = Capturer(LAYERS, 8, 2, torch.device("cpu"), single=False, traced=traced)
    made.keep_logits(4, torch.float32)
    return made


def ids(first: int, tokens: int) -> torch.Tensor:
    """Return ids [tokens, 2] that count up from ``first``."""
    return torch.arange(first, first + 2 * tokens, dtype=torch.int32).view(tokens, 2)


@KEPT
def test_steps_lie_one_behind_the_other(*, traced: bool) -> None:
    """Two steps of different length are kept in their order, layer by layer; what comes between them is not."""
    tap = capturer(traced=traced)
    for tokens in (3, 1):
        tap.begin(tokens, with_logits=False)
        for number, layer in enumerate(LAYERS):
            tap.capture(layer, ids(100 * number + 10 * tokens, tokens))
        tap.end()
        tap.capture(LAYERS[0], ids(900, 2))
    expected = torch.stack([torch.cat([ids(first + 30, 3), ids(first + 10, 1)]) for first in (0, 100)])
    assert torch.equal(tap.ids.taken(), expected)


@KEPT
def test_a_layer_that_says_nothing_leaves_nothing(*, traced: bool) -> None:
    """Not what it said before, and whatever the other layers said."""
    tap = capturer(traced=traced)
    for heard in (LAYERS, LAYERS[1:], []):
        tap.begin(2, with_logits=False)
        for layer in heard:
            tap.capture(layer, ids(0, 2))
        tap.end()
    kept = tap.ids.taken()
    assert kept.shape[:2] == (2, 6)
    assert (kept[0, 2:] == NOTHING).all()
    assert (kept[1, 4:] == NOTHING).all()
    assert torch.equal(kept[1, 2:4], ids(0, 2))


def test_rows_beyond_the_step_are_padding() -> None:
    """A layer that was given more rows than the step has tokens counts only those of the step."""
    tap = capturer(traced=False)
    tap.begin(2, with_logits=False)
    for layer in LAYERS:
        tap.capture(layer, ids(0, 5))
    tap.end()
    assert torch.equal(tap.ids.taken(), ids(0, 2).expand(2, 2, 2))


@KEPT
def test_logits_are_kept_of_the_steps_that_want_them(*, traced: bool) -> None:
    """And they stay what they were when a layer writes over its own afterwards."""
    tap = capturer(traced=traced)
    shown = torch.ones(2, 4)
    for wanted in (False, True):
        tap.begin(2, with_logits=wanted)
        for row in range(2):
            tap.logits.write(shown, row)
        shown.zero_()
        tap.end()
        shown.fill_(2)
    assert torch.equal(tap.logits.taken(), torch.full((2, 2, 4), 2.0))


@KEPT
def test_what_was_cleared_is_gone_and_there_is_room_again(*, traced: bool) -> None:
    """A step that does not fit behind the others fits once those are counted."""
    tap = capturer(traced=traced)
    tap.begin(tap.rows, with_logits=False)
    tap.end()
    assert not tap.has_room(1)
    tap.clear()
    assert tap.has_room(tap.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_confidence_is_that_of_the_softmax(dtype: torch.dtype) -> None:
    """Entropy and margin by their definitions, equal logits and experts that are masked out included."""
    logits = (3 * torch.randn(3, 50, 11, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[0, 0] = 1
    logits[1, 1, 4:] = -float("inf")
    given = logits.clone()
    share = logits.double().softmax(-1)
    best = share.topk(2, -1).values
    expected = torch.stack((torch.special.entr(share).sum(-1), best[..., 0] - best[..., 1]), -1).transpose(0, 1)
    torch.testing.assert_close(confidence(logits), expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, given)


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_confidence_of_what_is_no_number_is_none(strange: float) -> None:
    """So that it cannot pass for a sure router, and the other tokens keep theirs."""
    logits = torch.randn(1, 3, 5, generator=torch.Generator().manual_seed(0))
    logits[0, 1, 2] = strange
    finite = confidence(logits).isfinite().all(-1).all(-1)
    assert finite.tolist() == [True, False, True]
