"""Makes the ``Routing`` frame of a finished request, in the sender's thread, and judges whether it can be true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire
from moe_watch.tap.engine.counts import Fetch, Shape, Sums
from moe_watch.tap.engine.finish_notes import Ending
from moe_watch.tap.engine.ledger import Account
from moe_watch.tap.send import ids
from moe_watch.tap.send.sender import Build, Header, Sender


@dataclass(frozen=True, slots=True)
class Finished:
    """One finished request; ``request`` is the engine's id, ``at`` seconds since the epoch."""

    request: str
    ending: Ending
    account: Account
    fetch: Fetch
    at: float


def routing(sender: Sender, model: str, shape: Shape, finished: Finished) -> Build:
    """Return the making of the frame; it makes none where the counts cannot be true, which the status then says."""

    def build(header: Header) -> wire.Routing | None:
        account, sums = finished.account, finished.fetch()
        complaint = fault(sums.counts, account, shape)
        _judge(sender, complaint)
        if complaint:
            return None
        request_id, choice = ids.from_engine(finished.request)
        entropy, margin = _confidence(sums, account)
        return wire.Routing(
            **header,
            request_id=request_id,
            choice=choice,
            model=model,
            layers=shape.layers,
            experts=shape.experts,
            top_k=shape.top_k,
            prompt=wire.pack_counts(sums.counts[0, :, 1:-1]),
            decode=wire.pack_counts(sums.counts[1, :, 1:-1]),
            prompt_tokens=account.prompt_tokens,
            prompt_routed=account.prompt_routed,
            decode_routed=account.decode_routed,
            cached_tokens=account.cached,
            recomputed_tokens=account.recomputed,
            entropy=entropy,
            margin=margin,
            batch_mean=account.batch_sum / max(account.steps, 1),
            batch_max=account.batch_max,
            outcome=finished.ending.outcome,
            finished_at=finished.at,
        )

    return build


def unrouted(sender: Sender, why: str) -> Build:
    """Return what counts a request that finished without routing."""

    def build(header: Header) -> None:
        del header
        _judge(sender, why)

    return build


def fault(counts: NDArray[np.int32], account: Account, shape: Shape) -> str:
    """Return why ``counts`` [2, layers, experts + 2] cannot be the routing of ``account``'s tokens, or ""."""
    if counts[:, :, 0].any():
        return "a layer ran without the tap seeing which experts it chose"
    if counts[:, :, -1].any():
        return f"a layer chose an expert beyond the {shape.experts} that the model has"
    routed, total = account.prompt_routed + account.decode_routed, counts.sum(0)
    if shape.top_k > 1 and total.max() > routed:
        return "a token chose the same expert twice, as in a record that is all zeros"
    if shape.top_k == 1 and shape.experts > 1 and routed > 1 and (total[:, 1] == routed).all():
        return "every token chose expert 0 in every layer, as in a record that is all zeros"
    return ""


def _judge(sender: Sender, complaint: str) -> None:
    if sender.status.judge(complaint):
        sender.event("tap_blind", complaint)


def _confidence(sums: Sums, account: Account) -> tuple[list[float] | None, list[float] | None]:
    """Return mean entropy and margin per layer; None where nothing was measured or a logit was not a number."""
    if sums.confidence is None or not account.measured:
        return None, None
    mean = sums.confidence / account.measured
    if not np.isfinite(mean).all():
        return None, None
    return mean[:, 0].tolist(), mean[:, 1].tolist()
