"""A tap that is not there: frames as vLLM's processes would send them, with routing drawn from topics."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe_watch import wire


@dataclass
class Tap:
    """Makes the frames of one replica with ``layers`` x ``experts``; ``topics`` sets of experts are preferred."""

    replica: str = "r0"
    model: str = "tiny"
    layers: int = 3
    experts: int = 8
    top_k: int = 2
    source: str = "engine-0-aa"
    seed: int = 0
    _seq: Iterator[int] = field(default_factory=itertools.count)
    _api_seq: Iterator[int] = field(default_factory=itertools.count)
    _ids: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        normal = np.random.default_rng(7).dirichlet(np.full(self.experts, 0.5), (4, self.layers))
        unseen = np.random.default_rng(8).dirichlet(np.full(self.experts, 0.5), (1, self.layers))
        self.topics = np.concatenate([normal, unseen])

    def engine(self) -> dict[str, Any]:
        return {"replica": self.replica, "source": self.source, "seq": next(self._seq), "sent_at": time.time()}

    def api(self) -> dict[str, Any]:
        return {"replica": self.replica, "source": "api-bb", "seq": next(self._api_seq), "sent_at": time.time()}

    def announce(self, **more: Any) -> wire.Model:
        shape = {"layers": self.layers, "experts": self.experts, "top_k": self.top_k}
        return wire.Model(**self.engine(), model=self.model, **(shape | more))

    def health(self, state: str = "on", **more: Any) -> wire.Health:
        return wire.Health(**self.engine(), role="engine", state=state, **more)  # type: ignore[arg-type]

    def routing(self, request_id: str, *, unseen: bool = False, tokens: int = 64, **more: Any) -> wire.Routing:
        topic = self.topics[-1] if unseen else self.topics[self.random.integers(4)]
        decode_tokens = tokens // 4
        counts = [
            np.stack([self.random.multinomial(n * self.top_k, share) for share in topic])
            for n in (tokens - decode_tokens, decode_tokens)
        ]
        values = {
            "model": self.model,
            "layers": self.layers,
            "experts": self.experts,
            "top_k": self.top_k,
            "prompt": wire.pack_counts(counts[0]),
            "decode": wire.pack_counts(counts[1]),
            "prompt_tokens": tokens - decode_tokens,
            "prompt_routed": tokens - decode_tokens,
            "decode_routed": decode_tokens,
            "entropy": [1.5] * self.layers,
            "margin": [0.2] * self.layers,
            "finished_at": time.time(),
        }
        return wire.Routing(**self.engine(), request_id=request_id, **(values | more))

    def latency(self, request_id: str, **more: Any) -> wire.Latency:
        values = {
            "finish_reason": "length",
            "e2e_s": 0.5,
            "queue_s": 0.01,
            "prefill_s": 0.1,
            "decode_s": 0.39,
            "ttft_s": 0.11,
            "tpot_s": 0.026,
            "prompt_tokens": 48,
            "output_tokens": 17,
            "finished_at": time.time(),
        }
        return wire.Latency(**self.api(), request_id=request_id, **(values | more))

    def request(self, request_id: str, **more: Any) -> wire.Request:
        now = time.time()
        values = {
            "model": self.model,
            "endpoint": "/v1/completions",
            "status": 200,
            "started_at": now - 0.5,
            "finished_at": now,
        }
        return wire.Request(**self.api(), request_id=request_id, **(values | more))

    def whole(self, request_id: str | None = None, *, unseen: bool = False, tokens: int = 64) -> list[wire.AnyFrame]:
        """Return the three frames of one request."""
        name = request_id or f"cmpl-{self.seed}-{next(self._ids)}"
        return [self.routing(name, unseen=unseen, tokens=tokens), self.latency(name), self.request(name)]
