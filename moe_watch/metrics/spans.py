"""A span by OTLP for each flagged request, in the trace that vLLM's own span of it belongs to.

vLLM takes the client's ``traceparent`` for the parent of its span; so does this one, and both show side by side. A
request that came without has a trace of its own; ``gen_ai.request.id`` is the same as on vLLM's span in either case.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from moe_watch import __version__
from moe_watch.settings import OtlpSettings

_MOST: Final = 1024  # spans that wait; the oldest goes first
_NS: Final = 1_000_000_000
_trace_context: Final = TraceContextTextMapPropagator()
_new_ids: Final = RandomIdGenerator()
_RESOURCE: Final = Resource.create({"service.name": "moe-watch", "service.version": __version__})
_SCOPE: Final = InstrumentationScope("moe_watch", __version__)

_log = structlog.get_logger()


@dataclass(frozen=True)
class Flagged:
    """A request whose routing is unlike the baseline; times are seconds since the epoch."""

    request_id: str
    model: str
    replica: str
    baseline: int  # version
    p: float
    started_at: float
    finished_at: float
    traceparent: str = ""


@dataclass
class Spans:
    """Flagged requests that wait to be sent; what is too much is dropped and counted."""

    dropped: int = 0
    _waiting: deque[Flagged] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, flagged: Flagged) -> None:
        """Take one; never blocks for long."""
        with self._lock:
            if len(self._waiting) >= _MOST:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(flagged)

    def take(self) -> list[Flagged]:
        """Return all that wait, and forget them."""
        with self._lock:
            taken, self._waiting = list(self._waiting), deque()
        return taken


async def export_forever(spans: Spans, settings: OtlpSettings) -> None:
    """Send what waits every ``interval_s`` until cancelled, and once more then; a collector may be away."""
    if settings.endpoint is None or not settings.traces:
        return
    exporter = OTLPSpanExporter(f"{settings.endpoint.rstrip('/')}/v1/traces", timeout=5)
    try:
        while True:
            await asyncio.sleep(settings.interval_s)
            await asyncio.to_thread(_send, exporter, spans)
    finally:
        await asyncio.to_thread(_send, exporter, spans)
        exporter.shutdown()  # type: ignore[no-untyped-call]


def _send(exporter: OTLPSpanExporter, spans: Spans) -> None:
    taken = spans.take()
    if taken and exporter.export([span(one) for one in taken]) is not SpanExportResult.SUCCESS:
        _log.warning("the OTLP collector did not take the spans", spans=len(taken))


def parent(traceparent: str) -> SpanContext | None:
    """Return the span that a W3C ``traceparent`` names; None when it is none.

    >>> found = parent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    >>> f"{found.trace_id:032x}", f"{found.span_id:016x}"
    ('4bf92f3577b34da6a3ce929d0e0e4736', '00f067aa0ba902b7')
    >>> parent("00-00000000000000000000000000000000-00f067aa0ba902b7-01")
    """
    named = get_current_span(_trace_context.extract({"traceparent": traceparent})).get_span_context()
    return named if named.is_valid else None


def trace_id(traceparent: str) -> str:
    """Return the trace that a ``traceparent`` names as 32 hexadecimal digits; empty when it names none."""
    found = parent(traceparent)
    return "" if found is None else f"{found.trace_id:032x}"


def span(flagged: Flagged) -> ReadableSpan:
    """Return the span of a flagged request, from its start to its end."""
    above = parent(flagged.traceparent)
    trace = above.trace_id if above is not None else _new_ids.generate_trace_id()
    own = SpanContext(trace, _new_ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return ReadableSpan(
        "moe_watch flagged request",
        context=own,
        parent=above,
        resource=_RESOURCE,
        attributes={
            "gen_ai.request.id": flagged.request_id,
            "gen_ai.response.model": flagged.model,
            "moe_watch.replica": flagged.replica,
            "moe_watch.baseline": flagged.baseline,
            "moe_watch.ood.p": flagged.p,
            "moe_watch.explain": f"moe-watch explain {flagged.request_id}",
        },
        links=() if above is None else (Link(above),),
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.UNSET),
        start_time=int(flagged.started_at * _NS),
        end_time=int(max(flagged.started_at, flagged.finished_at) * _NS),
        instrumentation_scope=_SCOPE,
    )
