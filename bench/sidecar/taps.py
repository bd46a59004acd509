"""What the taps of synthetic replicas send: 30 x 128 fingerprints, each with latency and request frames."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from typing import Final

import numpy as np

from bench.simulate import World
from moe_watch import wire

POOL: Final = 512  # different fingerprints
LAYERS, EXPERTS, TOP_K = 30, 128, 8
MODEL: Final = "bench-30x128"


class Taps:
    """Makes the frames of ``replicas`` taps; requests go round among them."""

    def __init__(self, replicas: int = 4, name: str = "bench") -> None:
        batch = World(longest=2048).draw(POOL, np.random.default_rng(1))
        self._prompt = [wire.pack_counts(counts) for counts in batch.prompt]
        self._decode = [wire.pack_counts(counts) for counts in batch.decode]
        self._tokens = [
            (int(p[0].sum()) // TOP_K, int(d[0].sum()) // TOP_K)
            for p, d in zip(batch.prompt, batch.decode, strict=True)
        ]
        self._sources = [(f"{name}-{n}", f"{name}-{n}-{os.getpid()}") for n in range(replicas)]
        self._seq = [itertools.count() for _ in range(replicas)]
        self._next = itertools.count()

    def announce(self) -> Iterator[wire.AnyFrame]:
        """Yield what taps say when they start."""
        for replica in range(len(self._sources)):
            yield self._frame(
                replica, wire.Model, model=MODEL, layers=LAYERS, layer_ids=list(range(LAYERS)),
                experts=EXPERTS, top_k=TOP_K, vllm_version="bench", tap_version="bench", runner="v1",
            )  # fmt: skip
        yield from self.healths()

    def healths(self) -> Iterator[wire.AnyFrame]:
        """Yield what taps say every few seconds."""
        for replica in range(len(self._sources)):
            yield self._frame(replica, wire.Health, role="engine", state="on")

    def request(self) -> Iterator[wire.AnyFrame]:
        """Yield the three frames of one request that finishes now."""
        index, now = next(self._next), time.time()
        replica, picked = index % len(self._sources), index % POOL
        name, (prompt, decode) = f"chatcmpl-{os.getpid()}-{index}", self._tokens[picked]
        yield self._frame(
            replica, wire.Routing, request_id=name, model=MODEL, layers=LAYERS, experts=EXPERTS, top_k=TOP_K,
            prompt=self._prompt[picked], decode=self._decode[picked],
            prompt_tokens=prompt, prompt_routed=prompt, decode_routed=decode,
            entropy=[3.0] * LAYERS, margin=[0.1] * LAYERS, batch_mean=8.0, finished_at=now,
        )  # fmt: skip
        yield self._frame(
            replica, wire.Latency, request_id=name, finish_reason="stop", e2e_s=1.0, queue_s=0.0, prefill_s=0.2,
            decode_s=0.8, ttft_s=0.2, tpot_s=0.02, prompt_tokens=prompt, output_tokens=decode + 1, finished_at=now,
        )  # fmt: skip
        yield self._frame(
            replica, wire.Request, request_id=name, model=MODEL, endpoint="/v1/chat/completions", status=200,
            started_at=now - 1, finished_at=now,
        )  # fmt: skip

    def _frame(self, replica: int, kind: type[wire.AnyFrame], **fields: object) -> wire.AnyFrame:
        name, source = self._sources[replica]
        return kind(replica=name, source=source, seq=next(self._seq[replica]), sent_at=time.time(), **fields)
