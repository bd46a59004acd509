"""What is written of one request: the row, its fingerprint and its sampled text."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from moe_watch import wire
from moe_watch.detect.ood.score import OodScores
from moe_watch.domain import window
from moe_watch.domain.request import Joined
from moe_watch.store.codecs import arrays, counts
from moe_watch.store.write.batch import NewRequest

_DAY_S = 86_400.0
_DRAW = secrets.token_bytes(16)


def new_request(
    identity: str, joined: Joined, *, score: float | None, p: float | None, baseline_id: int | None
) -> NewRequest:
    """Return the row of ``joined``, without fingerprint and sample."""
    routing, latency, request = joined.routing, joined.latency, joined.request
    values: dict[str, Any] = {
        "request_id": text(joined.request_id, 255),
        "choice": joined.choice,
        "replica": text(joined.replica, 255),
        "finished_at": joined.finished_at,
        "outcome": window.outcome(joined),
        "prompt_tokens": latency.prompt_tokens if latency else routing.prompt_tokens if routing else 0,
        "output_tokens": latency.output_tokens if latency else routing.decode_routed if routing else 0,
        "cached_tokens": latency.cached_tokens if latency else routing.cached_tokens if routing else 0,
        "prompt_routed": routing.prompt_routed if routing else None,
        "decode_routed": routing.decode_routed if routing else None,
        "preemptions": latency.preemptions if latency else 0,
        "batch_mean": _number(routing.batch_mean) if routing else None,
        "e2e_s": _number(latency.e2e_s) if latency else None,
        "queue_s": _number(latency.queue_s) if latency else None,
        "ttft_s": _number(latency.ttft_s) if latency else None,
        "tpot_s": _number(latency.tpot_s) if latency else None,
        "finish_reason": text(latency.finish_reason, 32) if latency else "",
        "corrupted": latency.corrupted if latency else False,
        "images": request.images if request else 0,
        "domain": text(request.domain, 64) if request else "",
        "user_hash": text(request.user, 64) if request else "",
        "canary": joined.canary,
        "entropy": _mean(routing.entropy) if routing else None,
        "margin": _mean(routing.margin) if routing else None,
        "ood_score": _number(score),
        "ood_p": _number(p),
        "baseline_id": baseline_id,
    }
    return NewRequest(identity, values)


def new_requests(
    identity: str,
    requests: Sequence[Joined],
    scored: Sequence[int],
    ood: OodScores | None,
    *,
    baseline_id: int | None,
    fingerprint_rate: float,
    keep_samples_days: float,
) -> list[NewRequest]:
    """Return the rows of ``requests`` that reached the engine; ``scored`` are the indices of those in ``ood``."""
    known: dict[int, tuple[float, float]] = {}
    if ood is not None:
        known = dict(zip(scored, zip(ood.score.tolist(), ood.p.tolist(), strict=True), strict=True))
    made, told = [], []
    for index, joined in enumerate(requests):
        if joined.routing is None and joined.latency is None:
            continue
        told.append(joined)
        score, p = known.get(index, (None, None))
        row = new_request(identity, joined, score=score, p=p, baseline_id=None if p is None else baseline_id)
        row.sample = _sample(joined, keep_samples_days)
        made.append(row)
    kept = [(row, r) for row, r in zip(made, told, strict=True) if r.canary or is_kept(r.request_id, fingerprint_rate)]
    _add_fingerprints([(row, joined.routing) for row, joined in kept if joined.routing is not None])
    return made


def is_kept(request_id: str, rate: float) -> bool:
    """Say whether the fingerprint of this request is among the share ``rate`` that is stored.

    The same every time in this process, and for nobody to foretell who chooses ids.
    """
    if rate >= 1:
        return True
    drawn = blake2b(request_id.encode(), digest_size=8, key=_DRAW).digest()
    return int.from_bytes(drawn, "big") < rate * 2**64


def _add_fingerprints(of: Sequence[tuple[NewRequest, wire.Routing]]) -> None:
    """Give rows their fingerprints, packed all at once."""
    packed = iter(counts.pack_all([part for _, routing in of for part in (routing.prompt, routing.decode)]))
    for row, routing in of:
        row.fingerprint = {"prompt": next(packed), "decode": next(packed), "confidence": _confidence(routing)}


def _confidence(routing: wire.Routing) -> bytes | None:
    if routing.entropy is None or routing.margin is None:
        return None
    return arrays.pack_plain([*routing.entropy, *routing.margin])


def _sample(joined: Joined, keep_days: float) -> dict[str, Any] | None:
    request = joined.request
    if request is None or request.sample is None:
        return None
    sample: wire.Sample = request.sample
    prompt, place = wire.place(joined.choice, sample.prompts, request.choices)
    output = sample.outputs[place] if place < len(sample.outputs) else ""
    return {
        "endpoint": text(request.endpoint, 64),
        "prompt": text(_prompt(sample, prompt)),
        "output": text(output),
        "params": dict(sample.params),
        "prompt_truncated": sample.prompt_truncated,
        "output_truncated": sample.output_truncated,
        "redactions": sample.redactions,
        "sample_rate": request.sample_rate,
        "expires_at": request.finished_at + keep_days * _DAY_S,
    }


def _prompt(sample: wire.Sample, place: int) -> str:
    """Return the prompt at ``place`` of those of a sample; token ids as JSON."""
    if sample.prompts == 1:
        return sample.prompt
    try:
        prompts = msgspec.json.decode(sample.prompt, type=list[str | list[int]])
    except msgspec.DecodeError:
        return sample.prompt
    prompt = prompts[place] if place < len(prompts) else ""
    return prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()


def text(value: str, longest: int | None = None) -> str:
    r"""Return ``value`` as every store takes it: Postgres knows no NUL, and columns have a length.

    >>> text("a\0bc", 3) == "a\N{REPLACEMENT CHARACTER}b"
    True
    """
    if "\0" in value:
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value[:longest]


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean(values: list[float] | None) -> float | None:
    if not values:
        return None
    mean = sum(values) / len(values)
    if math.isfinite(mean):  # nearly always
        return mean
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else None
