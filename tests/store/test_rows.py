"""Rows: a request's columns come from the part that knows best, and fit their columns."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_watch import wire
from moe_watch.domain.request import Joined
from moe_watch.store.write import request_rows
from tests.support.frames import Tap


def _row(**parts: wire.AnyFrame) -> request_rows.NewRequest:
    known = {"routing": None, "latency": None, "request": None} | parts
    joined = Joined("r0", "cmpl-1", 0, **known, complete=True)  # type: ignore[arg-type]
    (row,) = request_rows.new_requests(
        "m", [joined], [], None, baseline_id=1, fingerprint_rate=1.0, keep_samples_days=2.0
    )
    return row


def test_latency_counts_tokens_where_it_came() -> None:
    """The engine's own numbers win over those of the routing."""
    row = _row(routing=Tap().routing("cmpl-1"), latency=Tap().latency("cmpl-1", prompt_tokens=50, cached_tokens=2))
    assert (row.values["prompt_tokens"], row.values["cached_tokens"], row.values["prompt_routed"]) == (50, 2, 48)


def test_what_did_not_come_is_null() -> None:
    """Not zero: zero tokens routed is something else than no routing."""
    row = _row(latency=Tap().latency("cmpl-1"))
    assert row.values["prompt_routed"] is row.values["entropy"] is row.values["ood_p"] is row.fingerprint is None
    row = _row(routing=Tap().routing("cmpl-1", entropy=None, margin=None))
    assert row.values["ttft_s"] is row.values["entropy"] is None
    assert row.fingerprint is not None
    assert row.fingerprint["confidence"] is None


def test_a_request_that_never_reached_the_engine_has_no_row() -> None:
    """It is counted in the window alone."""
    joined = Joined("r0", "cmpl-1", 0, None, None, Tap().request("cmpl-1", status=400), complete=True)
    assert (
        request_rows.new_requests("m", [joined], [], None, baseline_id=None, fingerprint_rate=1, keep_samples_days=1)
        == []
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_null(value: float) -> None:
    """A broken clock in vLLM does not break a row."""
    assert _row(latency=Tap().latency("cmpl-1", ttft_s=value)).values["ttft_s"] is None


def test_each_choice_has_its_own_output() -> None:
    """And a choice without one has an empty text; the sample expires."""
    sample = wire.Sample(prompt="p", outputs=["a", "b"], redactions=3)
    request = Tap().request("cmpl-1", sample=sample, sample_rate=0.5, finished_at=100.0)
    made = [
        request_rows.new_requests(
            "m",
            [Joined("r0", "cmpl-1", choice, None, Tap().latency("cmpl-1"), request, complete=True)],
            [],
            None,
            baseline_id=None,
            fingerprint_rate=1.0,
            keep_samples_days=2.0,
        )[0].sample
        for choice in range(3)
    ]
    assert [one["output"] for one in made if one is not None] == ["a", "b", ""]
    assert made[0] is not None
    assert (made[0]["expires_at"], made[0]["sample_rate"], made[0]["redactions"]) == (100.0 + 2 * 86_400, 0.5, 3)


@given(st.text(max_size=400))
def test_any_text_fits_its_column(value: str) -> None:
    """No NUL, no more than the column holds, and unchanged otherwise."""
    kept = request_rows.text(value, 255)
    assert len(kept) <= 255
    assert "\0" not in kept
    assert kept == value[:255].replace("\0", "\N{REPLACEMENT CHARACTER}")


def test_every_value_can_be_spooled() -> None:
    """Rows are msgpack on disk while the store is away."""
    row = _row(routing=Tap().routing("cmpl-1"), latency=Tap().latency("cmpl-1"), request=Tap().request("cmpl-1"))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(row), type=request_rows.NewRequest) == row


@given(st.floats(0, 1), st.text(max_size=20))
def test_the_share_of_fingerprints_is_the_same_requests_every_time(rate: float, request_id: str) -> None:
    """A request that is kept at a rate is kept at every higher one."""
    assert not request_rows.is_kept(request_id, rate) or request_rows.is_kept(request_id, min(1.0, rate * 1.5))
    assert request_rows.is_kept(request_id, 1.0)
    assert not request_rows.is_kept(request_id, 0.0)


def test_which_fingerprints_are_kept_is_not_the_clients_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that a draw without a secret would leave out are kept as often as others."""
    avoiding = [name for name in map(str, range(9000)) if zlib.crc32(name.encode()) >= 2**31][:4000]
    kept = []
    for draw in (b"one", b"two"):
        monkeypatch.setattr(request_rows, "_DRAW", draw)
        kept.append([request_rows.is_kept(name, 0.5) for name in avoiding])
        assert 1800 < sum(kept[-1]) < 2200
    assert kept[0] != kept[1]
