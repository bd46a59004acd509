"""Aggregation: windows add up, so merged is pooled."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_watch import wire
from moe_watch.detect.common.batch import Batch
from moe_watch.domain.request import Joined
from moe_watch.domain.window import P_EDGES, Clock, Window, outcome
from moe_watch.domain.window_sums import MOST_VALUES, Sums
from moe_watch.sidecar.join import Join
from tests.support.frames import Tap


def _requests(n: int, seed: int) -> list[Joined]:
    tap, join = Tap(seed=seed), Join(5.0)
    random = np.random.default_rng(seed)
    found = []
    for number in range(n):
        name = f"cmpl-{seed}-{number}"
        routing = tap.routing(name, tokens=int(random.integers(8, 200)))
        latency = tap.latency(
            name,
            prompt_tokens=int(random.integers(1, 200_000)),
            output_tokens=int(random.integers(1, 50)),
            ttft_s=float(random.exponential(2)),
            tpot_s=float(random.exponential(0.05)),
        )
        request = tap.request(name, domain=str(random.choice(["", "chat", "code"])), images=int(random.integers(2)))
        found += join.add([routing, latency, request], 0.0)
    return found


def _batch(requests: list[Joined]) -> Batch:
    routings = [joined.routing for joined in requests if joined.routing is not None]

    def counts(name: str) -> np.ndarray:
        return np.array([wire.unpack_counts(getattr(r, name), 3, 8) for r in routings], np.uint32).reshape(-1, 3, 8)

    confidence = [
        np.array([getattr(r, name) for r in routings], np.float32).reshape(-1, 3) for name in ("entropy", "margin")
    ]
    return Batch(counts("prompt"), counts("decode"), 2, *confidence)


def _window(requests: list[Joined]) -> Window:
    window = Window(3, 8)
    window.add_requests(requests)
    if requests:
        window.add_routing(_batch(requests))
        window.add_scores(np.full(len(requests), 0.003), np.ones(len(requests), bool))
    return window


def _same(one: Window, other: Window) -> None:
    assert (one.requests, one.routed_requests) == (other.requests, other.routed_requests)
    assert (one.counts == other.counts).all()
    np.testing.assert_allclose(one.moments, other.moments, rtol=1e-5)
    assert one.tallies == other.tallies
    assert one.sums.as_json() == pytest.approx(other.sums.as_json())
    vectors, others = one.vectors.as_json(), other.vectors.as_json()
    assert set(vectors) == set(others)
    for name, vector in vectors.items():
        np.testing.assert_allclose(vector, others[name], rtol=1e-5, err_msg=name)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_merged_is_pooled(sizes: list[int], seed: int) -> None:
    """However the requests are split into windows, the windows add up to the one over all of them."""
    requests = _requests(sum(sizes), seed)
    merged, at = Window(3, 8), 0
    for size in sizes:
        merged.merge(_window(requests[at : at + size]))
        at += size
    _same(merged, _window(requests))


def test_nothing_is_neutral() -> None:
    """Merging an empty window changes nothing."""
    window, requests = Window(3, 8), _requests(5, 1)
    window.merge(_window(requests))
    window.merge(Window(3, 8))
    _same(window, _window(requests))


def test_windows_of_different_models_do_not_add_up() -> None:
    """Another shape is refused."""
    with pytest.raises(ValueError, match="do not add up"):
        Window(3, 8).merge(Window(3, 16))


def test_counts_are_exact() -> None:
    """Counts are the sum over requests, prompt and decode apart, and moments those of square-root shares."""
    requests = _requests(20, 3)
    batch, window = _batch(requests), _window(requests)
    assert (window.counts[0] == batch.prompt.sum(0)).all()
    assert (window.counts[1] == batch.decode.sum(0)).all()
    share = batch.total / batch.total.sum(2, keepdims=True)
    np.testing.assert_allclose(window.moments[0], np.sqrt(share).sum(0), rtol=1e-5)
    np.testing.assert_allclose(window.moments[1], share.sum(0), rtol=1e-5)


def test_ttft_is_kept_by_length_of_prompt() -> None:
    """Each request is in the histogram of its context bucket, borders included below."""
    tap = Tap()
    lengths = {1: "4k", 4096: "4k", 4097: "16k", 131_072: "128k", 131_073: "longer"}
    window = Window(3, 8)
    window.add_requests(
        [Joined("r0", str(n), 0, None, tap.latency(str(n), prompt_tokens=n), None, complete=True) for n in lengths]
    )
    found = {context: counts.sum() for context, counts in window.vectors.ttft_s.items()}
    assert found == {"4k": 2, "16k": 1, "128k": 1, "longer": 1}


def test_nan_is_in_no_histogram() -> None:
    """A request too short to be scored has no p-value to count."""
    window = Window(3, 8)
    window.add_scores(np.array([np.nan, 0.0001, 1.0]), np.array([False, True, False]))
    assert window.sums == Sums(scored=2, ood=1)
    assert window.vectors.ood_p is not None
    assert window.vectors.ood_p.sum() == 2
    assert len(window.vectors.ood_p) == len(P_EDGES) + 1


def test_unknown_confidence_is_left_out_of_the_mean() -> None:
    """A nan of one request does not spoil a layer's sum."""
    counts = np.ones((2, 1, 4), np.uint32)
    entropy = np.array([[1.0], [np.nan]], np.float32)
    window = Window(1, 4)
    window.add_routing(Batch(counts, counts, 2, entropy, entropy))
    assert window.vectors.as_json()["entropy"] == [1.0]
    assert window.vectors.as_json()["entropy_n"] == [1.0]


def test_domains_are_bounded() -> None:
    """A client cannot make a window grow by inventing tags."""
    tap, window = Tap(), Window(3, 8)
    window.add_requests(
        [Joined("r0", str(n), 0, None, None, tap.request(str(n), domain=f"d{n}"), complete=True) for n in range(100)]
    )
    assert len(window.tallies.domains) == MOST_VALUES + 1
    assert sum(window.tallies.domains.values()) == 100


def test_scalars_survive_json() -> None:
    """What the store keeps as JSON gives the same window back."""
    window, again = _window(_requests(10, 2)), Window(3, 8, 10, 10)
    again.counts, again.moments = window.counts, window.moments
    again.load_scalars(json.loads(json.dumps(window.scalars())))
    _same(again, window)


def test_every_sum_that_can_be_read_is_written() -> None:
    """Ordinary requests with all their frames, scored and unscored, leave none of the fields empty."""
    window, requests = _window(_requests(30, 5)), _requests(30, 6)
    window.add_scores(np.full(30, 0.003), np.ones(30, bool), requests)
    window.sums.add(Sums(dropped={"lost": 1}))
    for part in (window.sums, window.vectors, window.tallies):
        assert [name for name, value in vars(part).items() if value is None or not len(np.atleast_1d(value))] == []
        assert [name for name, value in vars(part).items() if isinstance(value, dict) and not value] == []


def test_what_an_earlier_version_stored_keeps_its_names() -> None:
    """Histograms by length of prompt and losses by reason are one name each; what is unknown here is left out."""
    sums = {"scored": 3.0, "dropped.lost": 2.0, "dropped.buffer": 1.0, "of_a_later_version": 9.0}
    vectors = {"ttft_s.4k": [1.0, 2.0], "ttft_s.16k": [0.0, 1.0], "tpot_s": [4.0], "of_a_later_version": [9.0]}
    window = Window(0, 0)
    window.load_scalars({"sums": sums, "vectors": vectors, "tallies": {"domains": {"chat": 2}, "later": {"a": 1}}})
    assert window.sums == Sums(scored=3.0, dropped={"lost": 2.0, "buffer": 1.0})
    assert window.sums.joined is None
    for known in (sums, vectors):
        del known["of_a_later_version"]
    assert window.scalars() == {"sums": sums, "vectors": vectors, "tallies": {"domains": {"chat": 2}}}


def test_a_window_keeps_none_of_the_arrays_that_were_added_to_it() -> None:
    """What is merged twice is counted twice, and the first is as it was."""
    one, both = _window(_requests(5, 1)), Window(3, 8)
    before = one.scalars()
    both.merge(one)
    both.merge(one)
    assert one.scalars() == before


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"latency": Tap().latency("a", finish_reason="stop")}, "stop"),
        ({"latency": Tap().latency("a", finish_reason="weird")}, "other"),
        ({"request": Tap().request("a", status=500)}, "error"),
        ({"request": Tap().request("a", disconnected=True)}, "abort"),
        ({"routing": Tap().routing("a", outcome="aborted")}, "abort"),
    ],
)
def test_the_outcome_is_one_of_a_closed_set(parts: dict[str, wire.AnyFrame], expected: str) -> None:
    """The engine's own reason wins, then what the HTTP layer and the tap saw."""
    nothing: dict[str, wire.AnyFrame | None] = {"routing": None, "latency": None, "request": None}
    assert outcome(Joined("r0", "a", 0, **(nothing | parts), complete=True)) == expected  # type: ignore[arg-type]


def test_windows_lie_on_a_grid_save_the_first() -> None:
    """The first window after a start is a piece that ends on the grid; the next ones are whole."""
    clock = Clock(60.0)
    clock.open(130.0)
    assert (clock.start, clock.end) == (130.0, 180.0)
    assert not clock.is_over(179.9)
    assert clock.is_over(180.0)
    clock.open(185.0)
    assert (clock.start, clock.end) == (180.0, 240.0)


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30))
def test_no_window_begins_twice(times: list[float]) -> None:
    """Even when the clock is set back, no start is used again unless the clock shows the very same moment."""
    clock, starts = Clock(60.0), []
    for now in times:
        if clock.is_over(now):
            clock.open(now)
            starts.append((clock.start, now))
        assert clock.start <= now < clock.end
    repeated = [now for index, now in enumerate(times) if now in times[:index]]
    begun = [start for start, now in starts if now not in repeated]
    assert len(begun) == len(set(begun))


def test_scores_are_counted_by_domain_and_modality() -> None:
    """Scored and flagged requests add up over the parts; those too short to score are in none of them."""
    requests = _requests(60, 4)
    p = np.where(np.arange(60) % 3 == 0, 0.003, 0.5)
    p[:5] = np.nan
    window = Window(3, 8)
    window.add_scores(p, p <= 0.01, requests)
    for by in ("domains", "modalities"):
        tallies = window.tallies.as_json()
        assert sum(tallies[f"scored_{by}"].values()) == window.sums.scored == 55
        assert sum(tallies[f"ood_{by}"].values()) == window.sums.ood
        assert set(tallies[f"ood_{by}"]) <= set(tallies[f"scored_{by}"])
    assert set(window.tallies.scored_modalities) == {"image", "text"}


def test_parts_beyond_the_limit_are_flagged_under_the_name_they_are_scored_under() -> None:
    """A domain that no longer fits counts as "other" on both sides, so that no share is above 1."""
    tap, join = Tap(), Join(5.0)
    names = [f"cmpl-{k}" for k in range(MOST_VALUES + 5)]
    requests = [
        one
        for k, name in enumerate(names)
        for one in join.add([tap.routing(name), tap.latency(name), tap.request(name, domain=f"d{k}")], 0.0)
    ]
    window = Window(3, 8)
    flagged = np.arange(len(names)) >= MOST_VALUES
    window.add_scores(np.where(flagged, 0.003, 0.5), flagged, requests)
    assert window.tallies.ood_domains == {"other": window.tallies.scored_domains["other"]}


def test_merging_keeps_the_bound_on_domains() -> None:
    """A year of windows has no more names than one, and what is flagged keeps the name it was scored under."""
    whole = Window(3, 8)
    for n in range(100):
        one = Window(3, 8)
        one.load_scalars(
            {"tallies": {"ood_domains": {f"d{n}": 1}, "scored_domains": {f"d{n}": 2}}}
        )  # as Postgres orders
        whole.merge(one)
    assert len(whole.tallies.scored_domains) == MOST_VALUES + 1
    assert whole.tallies.ood_domains == {name: n // 2 for name, n in whole.tallies.scored_domains.items()}
    assert sum(whole.tallies.scored_domains.values()) == 200
