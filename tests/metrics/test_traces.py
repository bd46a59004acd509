"""Flagged requests leave as spans, in the trace of the client and of vLLM; nothing waits for a collector."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Sent
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from moe_watch.metrics import otlp, prometheus, series
from moe_watch.metrics import spans as traces
from moe_watch.metrics.board import Board, Exemplar
from moe_watch.metrics.spans import Flagged, Spans
from moe_watch.settings import OtlpSettings
from tests.support.judge_bench import Bench
from tests.support.otlp_receiver import Received, attributes, receiver

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def flagged(name: str = "chatcmpl-1", traceparent: str = TRACEPARENT) -> Flagged:
    return Flagged(name, "tiny", "r0", 3, 0.0021, 100.0, 101.5, traceparent)


def sent(spans: Spans, at: Received, until: Callable[[], bool], **settings: object) -> None:
    """Export until ``until`` holds, then stop in order."""

    async def run() -> None:
        known = OtlpSettings(endpoint=at.url, interval_s=0.01, **settings)  # type: ignore[arg-type]
        task = asyncio.create_task(traces.export_forever(spans, known))
        while not until() and not task.done():  # noqa: ASYNC110 - the receiver is a thread
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def only(at: Received) -> Sent:
    (span,) = at.spans("moe-watch")
    return span


def test_a_span_joins_the_trace_that_its_request_came_with() -> None:
    """Same trace and parent as vLLM's own span, its times, and what to type next."""
    spans = Spans()
    spans.add(flagged())
    with receiver() as at:
        sent(spans, at, lambda: bool(at.traces))
        span = only(at)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert [link.span_id.hex() for link in span.links] == [PARENT]
    assert (span.start_time_unix_nano, span.end_time_unix_nano) == (100 * 10**9, 1015 * 10**8)
    assert attributes(span) == {
        "gen_ai.request.id": "chatcmpl-1",
        "gen_ai.response.model": "tiny",
        "moe_watch.replica": "r0",
        "moe_watch.baseline": 3,
        "moe_watch.ood.p": 0.0021,
        "moe_watch.explain": "moe-watch explain chatcmpl-1",
    }


@pytest.mark.parametrize(
    "hostile", ["", "00-xyz", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", f"{TRACEPARENT}-more", "é" * 64]
)
def test_a_request_without_a_trace_has_one_of_its_own(hostile: str) -> None:
    """So has one with a header that names none."""
    spans = Spans()
    spans.add(flagged(traceparent=hostile))
    with receiver() as at:
        sent(spans, at, lambda: bool(at.traces))
        span = only(at)
    assert any(span.trace_id)
    assert not span.parent_span_id
    assert not span.links


def _of(digits: int) -> st.SearchStrategy[str]:
    return st.text("0123456789abcdef", min_size=digits, max_size=digits)


@given(_of(2), _of(32), _of(16), _of(2), st.sampled_from(["", "-", "-more"]))
def test_a_traceparent_is_read_as_the_standard_says(version: str, trace: str, span: str, flags: str, more: str) -> None:
    """Not of version ff, no ids of zeros, and of version 00 nothing behind the flags; later versions may add."""
    found = traces.parent(f"{version}-{trace}-{span}-{flags}{more}")
    if version == "ff" or not int(trace, 16) or not int(span, 16) or (version == "00" and more):
        assert found is None
    else:
        assert found is not None
        assert (found.trace_id, found.span_id, found.trace_flags) == (int(trace, 16), int(span, 16), int(flags, 16))
        assert found.is_remote


@given(st.integers(0, len(TRACEPARENT) - 1), st.characters())
def test_a_traceparent_with_a_character_that_does_not_belong_names_no_trace(at: int, other: str) -> None:
    """Capitals, digits of other scripts and separators of another kind included, wherever they stand."""
    assume(other not in "0123456789abcdef" and other != TRACEPARENT[at])
    assert traces.parent(TRACEPARENT[:at] + other + TRACEPARENT[at + 1 :]) is None
    assert traces.parent(TRACEPARENT[:at] + TRACEPARENT[at + 1 :]) is None


@given(st.text(max_size=64))
def test_any_text_of_a_frame_is_a_trace_or_none(text: str) -> None:
    assert traces.trace_id(text) == "" or len(traces.trace_id(text)) == 32


def test_a_collector_that_refuses_costs_the_spans_alone() -> None:
    """What was taken is not kept for ever; the next span arrives."""
    spans = Spans()
    spans.add(flagged("lost"))
    with receiver() as at:
        at.status = 400
        sent(spans, at, lambda: not spans._waiting)
        at.status = 200
        spans.add(flagged("kept"))
        sent(spans, at, lambda: bool(at.traces))
        assert attributes(only(at))["gen_ai.request.id"] == "kept"


def test_what_waits_is_bounded() -> None:
    """Without a collector the oldest go, and are counted."""
    spans = Spans()
    for number in range(3000):
        spans.add(flagged(f"r{number}"))
    taken = spans.take()
    assert (len(taken), taken[-1].request_id, spans.dropped) == (1024, "r2999", 3000 - 1024)
    assert spans.take() == []


def test_traces_can_be_switched_off() -> None:
    """Metrics alone go then."""
    spans = Spans()
    spans.add(flagged())
    with receiver() as at:
        sent(spans, at, lambda: False, traces=False)
        assert at.traces == []


def test_every_flagged_request_has_a_span_and_the_worst_is_the_exemplar() -> None:
    """Requests that are ordinary have none; the exemplar names request and trace by scrape and by OTLP."""
    bench = Bench()
    bench.learn()
    bench.send(50)
    ordinary = len(bench.board.spans.take())
    joined = []
    for request in bench.joined(30, unseen=True):
        assert request.request is not None
        asked = msgspec.structs.replace(request.request, traceparent=TRACEPARENT)
        joined.append(request.__class__(*[getattr(request, n) for n in ("replica", "request_id", "choice")],
                      request.routing, request.latency, asked, complete=True))  # fmt: skip
    writes = bench.monitors.process(joined, bench.now)
    unusual = {row.values["request_id"] for row in writes.requests if row.values["ood_p"] <= 0.01}
    taken = bench.board.spans.take()
    assert ordinary < 5
    assert {one.request_id for one in taken} == unusual
    assert len(unusual) > 20
    assert {one.traceparent for one in taken} == {TRACEPARENT}
    body, _ = prometheus.render(prometheus.registry(bench.board), "application/openmetrics-text")
    exemplars = {s.name: s.exemplar for f in parse_openmetrics(body.decode()) for s in f.samples if s.exemplar}
    for name in ("moe_watch_ood_requests_total", "moe_watch_time_to_first_token_seconds_bucket"):
        assert exemplars[name].labels["trace_id"] == TRACE
    (resource,) = otlp.metrics_data(bench.board, 1.0).resource_metrics
    points = {m.name: m.data.data_points[0] for m in resource.scope_metrics[0].metrics}
    assert points["moe_watch.ood_requests"].exemplars[0].trace_id == int(TRACE, 16)


def test_an_exemplar_has_room_for_its_trace() -> None:
    """Of a long request id only as much stays as the 128 characters of OpenMetrics allow beside the trace."""
    board = Board()
    board.add(series.OOD_REQUESTS, 1, "m", "r", exemplar=Exemplar("x" * 255, 1.0, 2.0, TRACE))
    body, _ = prometheus.render(prometheus.registry(board), "application/openmetrics-text")
    (found,) = (s.exemplar for f in parse_openmetrics(body.decode()) for s in f.samples if s.exemplar)
    assert sum(len(name) + len(value) for name, value in found.labels.items()) == 128
