"""Changes are dated against what happened to the deployment."""

from __future__ import annotations

import numpy as np

from moe_watch.detect.common.attribution import Happening, date

SECONDS = np.arange(1000.0)  # a request a second


def test_change_is_dated_to_the_event_before_it() -> None:
    """A change three requests after a rebalance says so."""
    dated = date(503.5, [Happening(100.0, "engine_start"), Happening(500.5, "eplb_rebalance")], SECONDS)
    assert dated is not None
    assert dated.words == "began 3 requests after the rebalance"


def test_quiet_hours_do_not_count() -> None:
    """What counts are requests: an event hours ago with no traffic since is near."""
    night = np.concatenate([np.arange(10.0), 40_000 + np.arange(10.0)])
    dated = date(40_001.5, [Happening(20.0, "engine_start")], night)
    assert dated is not None
    assert dated.requests == 2


def test_an_estimate_may_be_a_little_early() -> None:
    """An event shortly after the estimated start still counts, one long after does not."""
    after = [Happening(520.5, "eplb_rebalance")]
    dated = date(500.5, after, SECONDS)
    assert dated is not None
    assert dated.words == "began 20 requests before the rebalance"
    assert date(400.5, after, SECONDS) is None


def test_far_events_explain_nothing() -> None:
    """An event thousands of requests ago is no cause."""
    assert date(900.0, [Happening(10.0, "engine_start")], SECONDS, most_requests=500) is None


def test_of_events_between_two_requests_the_most_telling_is_named() -> None:
    """An upgrade is announced just before the engine starts; the upgrade says more."""
    upgrade = Happening(500.2, "model_changed", "vLLM 0.33.0 instead of 0.32.0")
    dated = date(501.5, [upgrade, Happening(500.4, "engine_start")], SECONDS)
    assert dated is not None
    assert dated.words == ("began 1 request after the change of the configuration (vLLM 0.33.0 instead of 0.32.0)")
