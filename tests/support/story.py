"""Simulated traffic of one model over some days, and what a sidecar would write of it.

Requests are mixtures of topics, tokens of a request are alike, days have cycles; a new topic can enter at some time.
Everything is drawn from one seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.detect.fit.baseline_fit import Baseline as Fitted
from moe_watch.detect.ood import score
from moe_watch.domain import window as aggregate
from moe_watch.domain.request import Joined
from moe_watch.store.records import windows
from moe_watch.store.write import request_rows
from moe_watch.store.write.batch import Writes

DAY = 86_400.0
UNTIL = 1_763_942_400.0  # Mon 24 Nov 2025 00:00 UTC
DOMAINS = ("chat", "code", "maths", "support", "legal")
NEW_DOMAIN = "catalogue"
MODEL = "google/gemma-4-26b-a4b-it"


@dataclass(frozen=True)
class Story:
    """What happened. Days count from the start; the store ends at ``until`` after ``days``."""

    layers: int = 6
    experts: int = 16
    top_k: int = 4
    days: float = 14.0
    per_day: int = 420  # so that the drift has the 500 requests that it takes to name experts
    until: float = UNTIL
    seed: int = 7
    replicas: tuple[str, ...] = ("gpu-a", "gpu-b")
    window_s: float = 3600.0
    baseline_day: float | None = 3.0  # when it is fitted and promoted; None: never
    drift: tuple[float, float] | None = (11.6, 14.0)  # days in which the new topic is there
    drift_share: float = 0.18
    silent: tuple[float, float] | None = (9.2, 9.45)
    unrouted: float = 0.01
    confidence: bool = True
    sample_rate: float = 0.3
    shadow: bool = True
    bench: bool = True
    canaries: bool = True
    gap_at_most_unusual: float = 0.22  # nats per token
    text: Callable[[int, str], tuple[str, str]] = field(default=lambda i, domain: (f"{domain} question {i}", "Answer."))
    names: Callable[[int], str] = field(default=lambda i: f"chatcmpl-{i * 2654435761 % 2**32:08x}")
    dead: tuple[int, int] | None = None  # layer and expert that get nothing during the drift

    @property
    def start(self) -> float:
        """Time of day 0."""
        return self.until - self.days * DAY


class World:
    """Simulated traffic of one model."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.random = np.random.default_rng(story.seed)
        shape = (len(DOMAINS) + 1, story.layers, story.experts)
        weights = self.random.gamma(0.9, size=shape) + 0.12
        common = self.random.gamma(1.5, size=shape[1:]) + 0.2
        mixed = weights * 0.55 + common
        mixed[-1, story.layers // 3 : story.layers // 2 + 1] = self.random.gamma(0.35, size=shape[2]) + 0.05
        self.topics = mixed / mixed.sum(-1, keepdims=True)
        self.count = 0

    def announcement(self) -> wire.Model:
        """Return what the tap says of the model."""
        story = self.story
        return wire.Model(
            replica=story.replicas[0], source="engine-0", seq=0, sent_at=story.start, model=MODEL, revision="a1b2c3",
            architecture="Gemma4ForCausalLM", layers=story.layers, layer_ids=list(range(story.layers)),
            experts=story.experts, top_k=story.top_k, ranks=2, vllm_version="0.32.0", tap_version="0.1.0", runner="v1",
            moe_backend="triton", quantization="", dtype="bfloat16", parallel={"tp": 2, "ep": 2},
        )  # fmt: skip

    def windows(self) -> Iterator[tuple[float, list[Joined]]]:
        """Yield the start of each window with its requests, of all replicas."""
        story = self.story
        per_window = story.per_day * story.window_s / DAY
        for at in np.arange(story.start, story.until, story.window_s):
            day = (at - story.start) / DAY
            if story.silent and story.silent[0] <= day < story.silent[1]:
                continue
            cycle = 1 + 0.7 * np.sin(2 * np.pi * (day - 0.35))
            weekend = 0.45 if int(at // DAY + 4) % 7 in {0, 6} else 1.0
            n = int(self.random.poisson(per_window * cycle * weekend))
            yield float(at), [self.request(float(at + self.random.uniform(0, story.window_s))) for _ in range(n)]

    def request(self, at: float) -> Joined:
        """Draw one finished request."""
        story, random = self.story, self.random
        self.count += 1
        number = self.count
        new = story.drift is not None and story.drift[0] <= (at - story.start) / DAY < story.drift[1]
        new = new and bool(random.random() < story.drift_share)
        topic = len(DOMAINS) if new else int(random.choice(len(DOMAINS), p=[0.4, 0.22, 0.12, 0.18, 0.08]))
        domain = NEW_DOMAIN if new else DOMAINS[topic]
        prompt_tokens = int(np.clip(random.lognormal(6.6, 1.5), 12, 120_000))
        output_tokens = int(np.clip(random.lognormal(4.8, 0.8), 2, 2000))
        common = {
            "replica": story.replicas[number % len(story.replicas)],
            "source": "engine-0",
            "seq": number,
            "sent_at": at,
            "request_id": story.names(number),
        }
        routing = None
        if random.random() >= story.unrouted:
            routing = self.routing(topic, prompt_tokens, output_tokens, common, at, new=new)
        sample = None
        if random.random() < story.sample_rate:
            asked, answered = story.text(number, domain)
            sample = wire.Sample(
                prompt=json.dumps([{"role": "user", "content": asked}]), outputs=[answered], params={"temperature": 0}
            )
        request = wire.Request(
            **common, model=MODEL, endpoint="/v1/chat/completions", status=200, images=int(random.random() < 0.05),
            domain=domain, user="", sample=sample, sample_rate=story.sample_rate, started_at=at - 3, finished_at=at,
        )  # fmt: skip
        latency = self.latency(prompt_tokens, output_tokens, common, at)
        return Joined(
            common["replica"], common["request_id"], 0, routing, latency, request, complete=routing is not None
        )

    def routing(
        self, topic: int, prompt_tokens: int, output_tokens: int, common: dict[str, object], at: float, *, new: bool
    ) -> wire.Routing:
        """Draw a fingerprint: one topic with some of another, tokens alike within the request."""
        story, random = self.story, self.random
        other = int(random.integers(len(DOMAINS)))
        blend = random.beta(8, 1.6)
        p = blend * self.topics[topic] + (1 - blend) * self.topics[other]
        p = random.gamma(np.maximum(p * 900, 1e-3))
        if story.dead is not None and story.drift is not None and (at - story.start) / DAY >= story.drift[0]:
            p[story.dead] = 0
        p /= p.sum(-1, keepdims=True)
        prompt, decode = (random.multinomial(n * story.top_k, p) for n in (prompt_tokens, output_tokens - 1))
        level = 2.1 + 0.15 * random.standard_normal(story.layers) + (0.2 if new else 0)
        return wire.Routing(
            **common, model=MODEL, layers=story.layers, experts=story.experts, top_k=story.top_k,
            prompt=wire.pack_counts(prompt), decode=wire.pack_counts(decode), prompt_tokens=prompt_tokens,
            prompt_routed=prompt_tokens, decode_routed=output_tokens - 1,
            entropy=level.tolist() if story.confidence else None,
            margin=(0.2 * np.exp(-level)).tolist() if story.confidence else None,
            batch_mean=float(np.exp(random.uniform(0, 4))), batch_max=64, finished_at=at,
        )  # fmt: skip

    def latency(self, prompt_tokens: int, output_tokens: int, common: dict[str, object], at: float) -> wire.Latency:
        """Draw times: to the first token it takes longer than in proportion to a long prompt."""
        noise = float(self.random.lognormal(0, 0.35))
        ttft = (0.06 + prompt_tokens / 16_000 + (prompt_tokens / 60_000) ** 2) * noise
        tpot = float(self.random.lognormal(np.log(0.028), 0.2))
        return wire.Latency(
            **common, finish_reason="length" if output_tokens >= 1500 else "stop", e2e_s=ttft + tpot * output_tokens,
            queue_s=0.01, prefill_s=ttft, decode_s=tpot * output_tokens, ttft_s=ttft, tpot_s=tpot,
            prompt_tokens=prompt_tokens, output_tokens=output_tokens, finished_at=at,
        )  # fmt: skip

    def batch(self, requests: list[Joined]) -> Batch:
        """Return the fingerprints of those requests that have one."""
        story = self.story
        routings = [r.routing for r in requests if r.routing is not None]
        counts = np.zeros((2, len(routings), story.layers, story.experts), np.uint32)
        for i, routing in enumerate(routings):
            counts[0, i] = wire.unpack_counts(routing.prompt, story.layers, story.experts)
            counts[1, i] = wire.unpack_counts(routing.decode, story.layers, story.experts)
        entropy, margin = (
            np.array([getattr(r, name) for r in routings], np.float32).reshape(-1, story.layers)
            if story.confidence
            else None
            for name in ("entropy", "margin")
        )
        return Batch(counts[0], counts[1], story.top_k, entropy, margin, np.array([r.finished_at for r in routings]))

    def writes(
        self, identity: str, at: float, requests: list[Joined], fitted: Fitted | None, key: int | None
    ) -> Writes:
        """Return what a sidecar would write of one window: a row of sums for each replica, and the requests."""
        found = Writes()
        for replica in self.story.replicas:
            mine = [r for r in requests if r.replica == replica]
            if not mine:
                continue
            window = aggregate.Window(self.story.layers, self.story.experts)
            window.add_requests(mine)
            batch = self.batch(mine)
            routed = [i for i, r in enumerate(mine) if r.routing is not None]
            window.add_routing(batch)
            scores = None
            if fitted is not None and len(batch):
                scores = score.score(fitted, batch)
                flagged: NDArray[np.bool_] = scores.p <= 0.01
                window.add_scores(scores.p, flagged, [mine[i] for i in routed])
            found.windows.append(windows.row(identity, replica, at, self.story.window_s, window))
            found.requests += request_rows.new_requests(
                identity, mine, routed, scores, baseline_id=key, fingerprint_rate=1.0, keep_samples_days=30.0
            )
        return found
