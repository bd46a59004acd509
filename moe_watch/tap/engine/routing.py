"""Counts routing per request: what happens around every step of a model runner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from moe_watch.tap.engine import finish_notes, frames
from moe_watch.tap.engine.capture import Capturer
from moe_watch.tap.engine.counts import Counts
from moe_watch.tap.engine.finish_notes import Ending
from moe_watch.tap.engine.ledger import Ledger, Tokens
from moe_watch.tap.send.sender import Sender

_STEPS: Final = 16  # steps that are counted together on a CPU, where each call costs more than its work
_LATEST_S: Final = 0.1  # but no later than this
# Prompt positions of a request whose confidence is measured, at most: in a step with many prompts this is most of
# what the tap costs, and more positions tell unseen texts from normal ones hardly better (docs/detection.md).
_MEASURED: Final = 32


class RoutingTap:
    """One model runner's tap. A step is counted when a later one begins: by then it is known which texts ended."""

    def __init__(self, capturer: Capturer, counts: Counts, slots: int, model: str, sender: Sender) -> None:
        self.capturer = capturer
        self.counts = counts
        self.ledger = Ledger(slots)
        self.model = model
        self.sender = sender
        self.status = sender.status
        self._together = 1 if capturer.single else _STEPS
        self._oldest = 0.0  # monotonic time of the first step that is not counted yet
        self._lengths: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._prefilling: dict[str, int] = {}  # request -> tokens in its prompt
        self._homeless: set[str] = set()
        self._ended: list[tuple[str, Ending, float]] = []
        self._measured: list[tuple[int, bool]] = []  # of each step: tokens, and whether their logits were kept

    def begin(self, scheduled: Any) -> None:
        """Before a step: take note of what ended and what is new; count what was done when it is time to."""
        tokens = scheduled.total_num_scheduled_tokens
        if scheduled.finished_req_ids:
            self._note_ended(scheduled)
        if not tokens or self._is_time() or not self.capturer.has_room(tokens):
            self.settle()
        cached = scheduled.scheduled_cached_reqs
        self._starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        self._lengths = scheduled.num_scheduled_tokens
        for new in scheduled.scheduled_new_reqs:
            self._open(new)
        if tokens:
            self._measured.append((tokens, bool(self._prefilling)))
            self.capturer.begin(tokens, with_logits=bool(self._prefilling))
        self.status.requests_open = len(self.ledger)

    def end(self, order: Sequence[str]) -> None:
        """After a step that computed the requests in ``order``."""
        if not self.ledger.steps:
            self._oldest = time.monotonic()
        self.ledger.visit(order, self._starts, self._lengths)
        self.capturer.end()
        self.status.steps += 1
        for request, prompt in list(self._prefilling.items()):
            if request in self._lengths and self._starts[request] + self._lengths[request] >= prompt:
                del self._prefilling[request]

    def settle(self) -> None:
        """Count the steps that were done and send what ended; before anything else overwrites the buffer."""
        if self.ledger.steps:
            tokens = self.ledger.settle()
            self.counts.add(self.capturer.ids.taken(), tokens.row)
            self._measure(tokens)
            self.capturer.clear()
        for request, ending, at in self._ended:
            self._send(request, ending, at)
        self._ended.clear()

    def _is_time(self) -> bool:
        late = self.ledger.steps and time.monotonic() - self._oldest > _LATEST_S
        return bool(late or self.ledger.steps >= self._together)

    def _open(self, new: Any) -> None:
        if self._ended and any(
            request == new.req_id for request, _, _ in self._ended
        ):  # the same id again: another request
            self.settle()
        if self.ledger.is_full():
            self.settle()
        if new.req_id in self._homeless:  # scheduled anew after a preemption: its first tokens are not known
            return
        self._starts[new.req_id] = new.num_computed_tokens
        if self.ledger.open(new.req_id, new.prompt_len, new.num_computed_tokens):
            self._prefilling[new.req_id] = new.prompt_len
        else:
            self._homeless.add(new.req_id)

    def _note_ended(self, scheduled: Any) -> None:
        """Remember what ended; raise ``RuntimeError`` when the scheduler did not say how."""
        now, noted = time.time(), finish_notes.of(scheduled)
        for request in scheduled.finished_req_ids:
            self._prefilling.pop(request, None)
            if request in self._homeless:
                self._homeless.discard(request)
                self.sender.put(frames.unrouted(self.sender, "no slot was free"))
            elif request in self.ledger:
                if request not in noted:
                    raise RuntimeError("a request finished without a note: the scheduler is not vLLM's own")
                if noted[request].outcome == "finished":
                    self.ledger.end_text(request, noted[request].output_tokens)
                self._ended.append((request, noted[request], now))

    def _measure(self, tokens: Tokens) -> None:
        """Sum the confidence at prompt positions: all of a short prompt, evenly spaced ones of a long one."""
        steps, self._measured = np.array(self._measured), []
        if self.capturer.logits is None or not steps[:, 1].any():
            return
        measured = np.repeat(steps[:, 1] > 0, steps[:, 0])
        stride = np.maximum(-(-self.ledger.prompts(tokens.slot) // _MEASURED), 1)
        in_prompt = (tokens.row % 2 == 0) & (tokens.row != self.ledger.nowhere)
        at = np.flatnonzero(measured & in_prompt & (tokens.position % stride == 0))
        if len(at):
            self.ledger.note_measured(tokens.slot[at])
            kept = measured.cumsum()[at] - 1  # only measured steps have logits
            self.counts.add_confidence(self.capturer.logits.taken(), kept, tokens.slot[at])

    def _send(self, request: str, ending: Ending, at: float) -> None:
        closed = self.ledger.close(request)
        if closed is None:
            return
        slot, account = closed
        fetch = self.counts.take(slot, with_confidence=self.capturer.logits is not None)
        shape = self.counts.shape
        self.status.routed_tokens += account.prompt_routed + account.decode_routed
        self.sender.put(
            frames.routing(
                self.sender,
                self.model,
                shape,
                frames.Finished(request, ending, account, fetch, at),
            ),
            8 * shape.layers * shape.experts,
        )
