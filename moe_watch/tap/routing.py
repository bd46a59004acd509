"""Counts routing per request: what happens around every step of a model runner."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moe_watch import wire
from moe_watch.tap import endings, ids
from moe_watch.tap.capture import Capturer
from moe_watch.tap.counts import Counts, Fetch, Shape
from moe_watch.tap.endings import Ending
from moe_watch.tap.ledger import Account, Ledger, Step
from moe_watch.tap.sender import Build, Header, Sender

Order = Callable[[Any], Sequence[str]]
_UNKNOWN = Ending(0, "finished")


class RoutingTap:
    """One model runner's tap. A step is counted when the next one begins: by then it is known which texts ended."""

    def __init__(self, capturer: Capturer, counts: Counts, slots: int, model: str, sender: Sender) -> None:
        self.capturer = capturer
        self.counts = counts
        self.ledger = Ledger(slots)
        self.model = model
        self.sender = sender
        self.status = sender.status
        self._lengths: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._done: Step | None = None

    def begin(self, scheduled: Any) -> None:
        """Before a step: count the last one, send what finished, take in what is new."""
        finished = endings.of(scheduled)
        for request, ending in finished.items():
            if ending.outcome == "finished":
                self.ledger.end_text(request, ending.output_tokens)
        self.settle()
        for request in scheduled.finished_req_ids:
            self._finish(request, finished.get(request, _UNKNOWN))
        cached = scheduled.scheduled_cached_reqs
        self._starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for new in scheduled.scheduled_new_reqs:
            self._starts[new.req_id] = new.num_computed_tokens
            self.ledger.open(new.req_id, new.prompt_len, new.num_computed_tokens)
        self._lengths = scheduled.num_scheduled_tokens
        self.capturer.reset(scheduled.total_num_scheduled_tokens)
        self.status.requests_open = len(self.ledger)

    def end(self, order: Sequence[str]) -> None:
        """After a step that computed the requests in ``order``."""
        self._done = Step(order, self._starts, self._lengths)
        self.status.steps += 1

    def settle(self) -> None:
        """Count the step that was done last, before anything overwrites the capture buffer."""
        step, self._done = self._done, None
        if step is not None:
            rows = self.ledger.rows(step)
            self.counts.add(self.capturer.ids[:, : len(rows)], rows)

    def _finish(self, request: str, ending: Ending) -> None:
        closed = self.ledger.close(request)
        if closed is None:
            return
        slot, account = closed
        fetch = self.counts.take(slot)
        self.status.routed_tokens += account.prompt_routed + account.decode_routed
        self.sender.put(
            self._frame(request, ending, account, fetch), 8 * self.counts.shape.layers * self.counts.shape.experts
        )

    def _frame(self, request: str, ending: Ending, account: Account, fetch: Fetch) -> Build:
        """Return the making of the ``Routing`` frame, for the sender's thread."""
        finished_at = time.time()

        def build(header: Header) -> wire.Routing | None:
            counts = fetch()
            complaint = fault(counts, account, self.counts.shape)
            if self.status.judge(complaint):
                self.sender.event("tap_blind", complaint)
            if complaint:
                return None
            request_id, choice = ids.from_engine(request)
            shape = self.counts.shape
            return wire.Routing(
                **header,
                request_id=request_id,
                choice=choice,
                model=self.model,
                layers=shape.layers,
                experts=shape.experts,
                top_k=shape.top_k,
                prompt=wire.pack_counts(counts[0, :, 1:-1]),
                decode=wire.pack_counts(counts[1, :, 1:-1]),
                prompt_tokens=account.prompt_tokens,
                prompt_routed=account.prompt_routed,
                decode_routed=account.decode_routed,
                cached_tokens=account.cached,
                recomputed_tokens=account.recomputed,
                batch_mean=account.batch_sum / max(account.steps, 1),
                batch_max=account.batch_max,
                outcome=ending.outcome,
                finished_at=finished_at,
            )

        return build


def fault(counts: np.ndarray[Any, np.dtype[np.int32]], account: Account, shape: Shape) -> str:
    """Return why the counts [2, layers, experts + 2] of one request cannot be its routing, or ""."""
    if counts[:, :, 0].any():
        return "a layer chose no experts that the tap could see"
    if counts[:, :, -1].any():
        return "a layer chose experts beyond the last one"
    routed = account.prompt_routed + account.decode_routed
    total = counts.sum(0)
    if shape.top_k > 1 and total.max() > routed:
        return "a token chose the same expert more than once (an all-zero record looks so)"
    if shape.top_k == 1 and shape.experts > 1 and routed > 1 and (total[:, 1] == routed).all():
        return "every token of every layer chose expert 0"
    return ""
