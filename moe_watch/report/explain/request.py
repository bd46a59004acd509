"""What there is to say of one request: its fingerprint against the active baseline, its times, its neighbours."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

from sqlalchemy import Engine

from moe_watch.alarms import Tone
from moe_watch.domain import amounts
from moe_watch.domain.sanitise import conversation
from moe_watch.metrics.series import CONTEXT_BUCKETS, CONTEXTS
from moe_watch.report.build import fingerprint, from_history
from moe_watch.report.build.fingerprint import Comparison
from moe_watch.settings import Settings
from moe_watch.store.codecs import arrays
from moe_watch.store.engine import StoreError
from moe_watch.store.read import report_queries as store
from moe_watch.store.read import requests
from moe_watch.store.read.requests import Found
from moe_watch.store.records import baselines
from moe_watch.store.schema import Baseline, Request

_EACH_SIDE: Final = 5  # neighbours in time
_LAYERS: Final = 6
_BAR: Final = 24  # characters


@dataclass(frozen=True)
class Table:
    """Rows under a title; the first column is text, the others are aligned to the right when ``numbers``."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = True


@dataclass(frozen=True)
class Explanation:
    """What a person reads, and ``data`` for machines. Nothing in it is neutralised yet."""

    title: str
    tone: Tone
    sentences: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    todo: tuple[str, ...] = ()
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Judged:
    """A comparison with the active baseline, or why there is none."""

    comparison: Comparison | None
    baseline: Baseline | None
    why_not: str


def request(engine: Engine, settings: Settings, request_id: str, now: float) -> list[Explanation]:
    """Return an explanation of each choice of the request, the newest first; none when the store has no such one."""
    return [_explain(engine, settings, found, now) for found in requests.find(engine, request_id)]


def _explain(engine: Engine, settings: Settings, found: Found, now: float) -> Explanation:
    row = found.request
    judged = _judge(engine, found)
    comparison = judged.comparison
    p = comparison.p if comparison is not None and comparison.p is not None else row.ood_p
    with engine.connect() as connection:
        near = store.neighbours(connection, row.model_id, row.finished_at, _EACH_SIDE)
        shadow = store.shadow(connection, row.id)
    tables = [*(_of_fingerprint(comparison) if comparison is not None else ()), _neighbours(near, row)]
    sentences = (*_of_routing(row, judged), *_of_times(row, settings), *_of_quality(shadow, row))
    unusual = p is not None and p <= settings.detect.ood_alpha
    verdict = "not scored" if p is None else f"{'unusual' if unusual else 'ordinary'} (p = {amounts.significant(p)})"
    choice = f" choice {row.choice}" if row.choice else ""
    return Explanation(
        title=f"{row.request_id}{choice} of {found.model.name}: {verdict}",
        tone="unknown" if p is None else "warn" if unusual else "calm",
        sentences=sentences,
        tables=tuple(tables),
        texts=_texts(found, now),
        data=_data(row, judged, near, shadow),
    )


def _judge(engine: Engine, found: Found) -> _Judged:
    active = next((row for row, _ in baselines.listed(engine, found.model) if row.active), None)
    if found.request.prompt_routed is None:
        return _Judged(None, active, "No routing came for this request.")
    if found.fingerprint is None:
        why = "Its full fingerprint was not kept (store.fingerprint_rate), or it was pruned (store.keep_requests_days)."
        return _Judged(None, active, why)
    if active is None:
        return _Judged(None, None, "The model has no active baseline to compare with: moe-watch baseline fit.")
    served = from_history.served(found.model)
    try:
        fitted = baselines.load(engine, active.id)
        raw = (found.fingerprint.prompt, found.fingerprint.decode)
        prompt, decode = (arrays.unpack_counts(part, served.layers, served.experts) for part in raw)
        return _Judged(fingerprint.compare(fitted, prompt, decode, served.layer_ids), active, "")
    except (StoreError, ValueError) as error:
        return _Judged(None, active, f"It cannot be compared with baseline {active.version}: {error}.")


def _of_routing(row: Request, judged: _Judged) -> list[str]:
    """Say how unusual the routing is, and where."""
    found, baseline = judged.comparison, judged.baseline
    if found is None or baseline is None:
        stored = [] if row.ood_p is None else [f"When it finished its p-value was {amounts.significant(row.ood_p)}."]
        return [judged.why_not, *stored]
    if found.p is None:
        tokens = amounts.plural(found.tokens, "routed token")
        return [f"With {tokens} it is too short to be scored against baseline {baseline.version}."]
    of = f"normal requests of its length are as unusual or more (p = {amounts.significant(found.p)})"
    against = f"against baseline {baseline.version} of {baseline.requests:,} requests"
    out = [f"About {amounts.share(found.p)} of {of}, {against}."]
    parts = [("prompt", found.p_prompt), ("generated text", found.p_decode)]
    known = [f"{name} p = {amounts.significant(p)}" for name, p in parts if p is not None]
    if known:
        out.append(f"Parts alone: {amounts.joined(known)}.")
    if row.ood_p is not None and row.baseline_id not in {None, baseline.id}:
        out.append(f"When it finished another baseline was active: p = {amounts.significant(row.ood_p)}.")
    moved = [
        f"layer {e.layer}: share of expert {e.expert} from {amounts.share(e.normal)} to {amounts.share(e.here)}"
        for e in found.experts[:3]
    ]
    out.append(f"Largest deviations: {'; '.join(moved)}.")
    return out


def _of_times(row: Request, settings: Settings) -> list[str]:
    """Say how long it was and how long it took, against the budget of its length."""
    cached = f" ({row.cached_tokens:,} of them from the prefix cache, so not routed)" if row.cached_tokens else ""
    size = f"{row.prompt_tokens:,} prompt tokens{cached}, {row.output_tokens:,} generated"
    ended = row.finish_reason or row.outcome
    out = [f"Finished {amounts.moment(row.finished_at)} UTC on {row.replica}: {size}, ended by “{ended}”."]
    if row.ttft_s is None:
        return [*out, "No latency came for it."]
    context = next(name for name in CONTEXTS if row.prompt_tokens <= CONTEXT_BUCKETS.get(name, 1 << 62))
    budget = settings.serving.ttft_budget_s.get(context)
    late = ""
    if budget is not None:
        late = f", {'over' if row.ttft_s > budget else 'within'} the {amounts.seconds(budget)} of {context} prompts"
    times = [f"first token after {amounts.seconds(row.ttft_s)}{late}"]
    times += [f"{amounts.seconds(row.tpot_s)} a token"] if row.tpot_s else []
    times += [f"{amounts.seconds(row.queue_s)} in the queue"] if row.queue_s else []
    times += [amounts.plural(row.preemptions, "preemption")] if row.preemptions else []
    sentence = ", ".join(times)
    return [*out, f"{sentence[0].upper()}{sentence[1:]}."]


def _of_quality(shadow: store.AnyRow | None, row: Request) -> list[str]:
    """Say what vLLM and the dense model found of its output."""
    out = ["vLLM saw NaN in its logits."] if row.corrupted else []
    if shadow is None:
        return out
    defects = (shadow.defects or {}).get("moe", [])
    if defects:
        out.append(f"Defects of the output: {amounts.joined([str(name).replace('_', ' ') for name in defects])}.")
    if shadow.nll_moe_output is not None and shadow.nll_dense_output is not None:
        gap = shadow.nll_moe_output - shadow.nll_dense_output
        likely = "more likely" if gap < 0 else "less likely"
        compared = f"{amounts.significant(abs(gap))} nats per token {likely} than its own"
        out.append(f"{shadow.dense_model} finds this output {compared}.")
    if shadow.agreement is not None:
        out.append(f"Both models agreed on {amounts.share(shadow.agreement)} of the tokens before they first differed.")
    return out


def _of_fingerprint(found: Comparison) -> tuple[Table, ...]:
    if not found.layers:
        return ()
    most = max(abs(found.layers[0].score), 1.0)
    layers = tuple(
        (f"layer {one.layer}", f"{one.score:+.1f}", "█" * max(0, round(_BAR * one.score / most)))
        for one in found.layers[:_LAYERS]
    )
    experts = tuple(
        (f"layer {e.layer}, expert {e.expert}", amounts.share(e.normal), amounts.share(e.here)) for e in found.experts
    )
    return (
        Table("Most unusual layers, in standard deviations of normal requests", ("", "score", ""), layers),
        Table("Experts in them, share of the layer's tokens", ("", "normally", "here"), experts),
    )


def _neighbours(rows: list[store.AnyRow], own: Request) -> Table:
    found = tuple(
        (
            f"{'→ ' if row.id == own.id else '  '}{row.request_id}",
            amounts.moment(row.finished_at),
            amounts.UNKNOWN if row.ood_p is None else amounts.significant(row.ood_p),
            f"{row.prompt_tokens:,} + {row.output_tokens:,}",
            row.domain,
            row.replica,
        )
        for row in rows
    )
    return Table(
        "Before and after it", ("request", "finished", "p", "tokens", "domain", "replica"), found, numbers=False
    )


def _texts(found: Found, now: float) -> tuple[tuple[str, str], ...]:
    sample = found.sample
    if sample is None or sample.expires_at <= now:
        return ()
    cut = (
        " (cut by the tap)" if sample.prompt_truncated else "",
        " (cut by the tap)" if sample.output_truncated else "",
    )
    return ((f"Prompt{cut[0]}", conversation(sample.prompt)), (f"Output{cut[1]}", sample.output))


def _data(row: Request, judged: _Judged, near: list[store.AnyRow], shadow: store.AnyRow | None) -> dict[str, Any]:
    columns = {c.name: getattr(row, c.name) for c in Request.__table__.columns if c.name not in {"id", "user_hash"}}
    return {
        "request": columns,
        "baseline": None if judged.baseline is None else judged.baseline.version,
        "comparison": None if judged.comparison is None else asdict(judged.comparison),
        "why_not": judged.why_not or None,
        "shadow": None if shadow is None else {k: v for k, v in shadow._mapping.items() if k != "request_pk"},  # noqa: SLF001 - SQLAlchemy's public name
        "neighbours": [
            {"request_id": r.request_id, "finished_at": r.finished_at, "ood_p": r.ood_p, "domain": r.domain}
            for r in near
        ],
    }
