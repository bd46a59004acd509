"""The verdict says what the data shows, and never more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Canaries, Context, Latency, LayerLoad, Load, Replay, Slowdown
from moe_watch.report.data.types import Interval, Missing, Period
from moe_watch.report.say import verdict as words
from moe_watch.report.say.captions import leads, unknowns
from tests.support.reviews import NOTHING, drifted, quiet, with_drift, with_shift
from tests.support.store_factory import DAY, UNTIL


def everything_said(review: Review) -> str:
    """Return all sentences of the first screen and over the sections."""
    verdict = words.verdict(review)
    said = [verdict.headline, *(s for a in verdict.answers for s in (a.short, *a.sentences))]
    return " ".join([*said, *(a.text for a in verdict.actions), *leads(review).values(), *unknowns(review)])


def test_a_week_of_drift_reads_as_one() -> None:
    """Headline, cause, size and place of a traffic drift are all there."""
    verdict = words.verdict(drifted())
    assert (verdict.state, verdict.tone) == ("traffic", "warn")
    assert verdict.headline.startswith("Traffic is unlike the baseline since Fri 21 Nov 14:24")
    routing = " ".join(verdict.answers[1].sentences)
    assert "first in layer 2" in routing
    assert "it was the traffic, not the model" in routing
    assert "share of expert" in routing
    assert verdict.actions[0].command == "moe-watch explain alarm:1"


@pytest.mark.parametrize(
    "review",
    [
        lambda: replace(quiet(), coverage=replace(quiet().coverage, requests=0, routed=0, scored=0)),
        lambda: replace(quiet(), coverage=replace(quiet().coverage, routed=0, scored=0)),
        lambda: replace(quiet(), coverage=replace(quiet().coverage, scored=0), ood=NOTHING, baseline=NOTHING),
    ],
    ids=["no requests", "no routing", "no baseline"],
)
def test_nothing_is_called_steady_without_data(review: object) -> None:
    """Without requests, without routing or without a baseline the verdict is that nothing is known."""
    made = review()  # type: ignore[operator]
    verdict = words.verdict(made)
    assert verdict.state in {"empty", "blind", "learning"}
    assert verdict.tone != "calm"
    assert verdict.answers[1].short == "Not known"
    said = everything_said(made).lower()
    assert "healthy" not in said
    assert "steady" not in said


def test_a_quiet_week_says_how_sure_it_is() -> None:
    """No alarm comes with the number of requests and the promised distance of false ones."""
    verdict = words.verdict(quiet())
    assert (verdict.state, verdict.tone) == ("steady", "calm")
    assert verdict.headline.startswith("Routing held steady; ")
    assert "false ones come at least 10,000 requests apart" in verdict.answers[1].sentences[0]


@pytest.mark.parametrize(
    ("kind", "state", "tone"),
    [
        ("routing", "routing", "bad"),
        ("traffic", "traffic", "warn"),
        ("quality", "quality", "bad"),
        ("garbled", "quality", "bad"),
        ("dead_experts", "deployment", "bad"),
        ("replica", "deployment", "bad"),
        ("blind", "blind", "bad"),
        ("something new", "deployment", "bad"),
    ],
)
def test_each_kind_of_alarm_has_its_verdict(kind: str, state: str, tone: str) -> None:
    """Whatever is flagged leads to a verdict and to something to do."""
    verdict = words.verdict(with_drift(kind))
    assert (verdict.state, verdict.tone) == (state, tone)
    assert verdict.actions[0].command == "moe-watch explain alarm:7"


def test_an_alarm_that_is_over_says_how_long_it_was() -> None:
    """The headline of an ended alarm is in the past."""
    verdict = words.verdict(with_drift("traffic", UNTIL - DAY + 3 * 3600))
    assert verdict.headline.startswith("Traffic left the baseline on Sun 23 Nov 00:00, for 3\u202fh")


@pytest.mark.parametrize(
    ("low", "high", "cause", "short", "headline"),
    [
        (-0.01, 0.01, "none", "Yes", "output quality held"),
        (-0.01, 0.05, "none", "No sign of worse", "no sign of worse output"),
        (0.005, 0.05, "none", "Perhaps not", "output may be getting worse"),
        (0.03, 0.05, "moe", "No", "and output got worse"),
        (0.03, 0.05, "both", "No", "more than harder requests explain"),
        (-0.01, 0.01, "traffic", "Yes", "requests got harder, the MoE did not get worse"),
    ],
)
def test_quality_is_told_with_its_uncertainty(low: float, high: float, cause: str, short: str, headline: str) -> None:
    """Held is said only where the interval rules a rise out; a harder mix is not blamed on the MoE."""
    verdict = words.verdict(with_shift(low, high, cause))
    assert verdict.answers[0].short == short
    assert headline in verdict.headline


@pytest.mark.parametrize(
    ("alike", "short", "headline"),
    [
        ((-0.02, 0.03), "Not on unusual requests", "worse on the unusual requests"),
        ((-0.02, 0.3), "No", "and output got worse"),  # too few to tell
        ((0.1, 0.18), "No", "and output got worse"),  # less, but worse all the same
    ],
)
def test_unusual_requests_are_told_from_a_worse_model(alike: tuple[float, float], short: str, headline: str) -> None:
    """A gap that grew only because requests became more unusual is not blamed on the usual ones."""
    verdict = words.verdict(with_shift(0.15, 0.25, "moe", alike))
    assert verdict.answers[0].short == short
    assert headline in verdict.headline


def test_an_alarm_of_the_canaries_needs_no_traffic() -> None:
    """A deployment that was found broken before its first request is told as that, not as nothing known."""
    broken = with_drift("routing")
    none = replace(broken.coverage, requests=0, routed=0, scored=0)
    verdict = words.verdict(replace(broken, coverage=none, ood=NOTHING, quality=NOTHING, change=NOTHING))
    assert verdict.headline.startswith("The same prompts go to other experts since")
    assert (verdict.tone, verdict.actions[0].command) == ("bad", "moe-watch explain alarm:7")
    assert any("no request came" in action.text for action in verdict.actions)


def test_worse_output_is_told_under_the_alarm_of_its_cause() -> None:
    """Where only unusual requests are answered worse the headline is the traffic's; output is no drift of routing."""
    review = with_shift(0.15, 0.25, "moe", (-0.02, 0.03))
    drifts = tuple(
        replace(with_drift(kind).timeline.alarms[0], kind=kind) for kind in ("quality", "traffic", "garbled")
    )
    verdict = words.verdict(replace(review, timeline=replace(review.timeline, alarms=drifts)))
    assert verdict.headline.startswith("Traffic is unlike the baseline")
    quality, routing, _ = verdict.answers
    assert any(sentence.startswith("Worse output from about") for sentence in quality.sentences)
    assert not any("output" in sentence for sentence in routing.sentences)
    alone = words.verdict(replace(review, timeline=replace(review.timeline, alarms=drifts[:1])))
    assert alone.headline.startswith("The MoE writes worse")


def test_an_open_alarm_of_quality_outweighs_a_calm_comparison() -> None:
    """An alarm that began in the period before and goes on is no quality that holds."""
    review = with_shift(-0.01, 0.01, "none")
    alarm = with_drift("quality").timeline
    found = words.verdict(replace(review, timeline=alarm)).answers[0]
    assert (found.short, found.tone) == ("No", "bad")


def test_a_slower_moe_is_told_when_the_dense_model_is_not_slower() -> None:
    """Latency has its control group too: what both models share is not told."""
    rise = Interval(0.21, 0.18, 0.24, 300)
    own = Slowdown("time per output token", rise, Interval(0.0, -0.01, 0.01, 300), rise, "moe")
    said = words.verdict(replace(quiet(), slowdowns=(own,))).answers[2].sentences[-1]
    assert said.startswith("The MoE's time per output token changed by +21")
    both = replace(own, cause="traffic")
    assert "MoE's time" not in everything_said(replace(quiet(), slowdowns=(both,)))


def test_without_a_shadow_quality_is_not_known() -> None:
    """No dense model, no statement on quality, and what to switch on."""
    review = replace(quiet(), quality=Missing("No output was compared.", "Set MOE_WATCH_SHADOW__URL."))
    verdict = words.verdict(review)
    assert verdict.answers[0].short == "Not known"
    assert verdict.headline == "Routing held steady; output quality was not measured"
    assert any("MOE_WATCH_SHADOW__URL" in action.text for action in verdict.actions)


def test_nan_in_the_logits_is_bad_whatever_else_is_known() -> None:
    """The flag that vLLM itself sets on corrupted output needs no shadow."""
    review = replace(quiet(), quality=NOTHING, totals=replace(quiet().totals, corrupted=3))
    verdict = words.verdict(review)
    assert verdict.tone == "bad"
    assert "NaN in the logits of 3 requests" in verdict.answers[0].sentences[0]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("healthy", "benign"), "it was the traffic, not the model"),
        (("healthy", "routing"), "the model or its deployment moved"),
        (("healthy", "blind"), "it was the traffic, not the model"),
        (("blind",), "is not certain: no replay of the canaries since could be judged"),
        ((), "is not certain"),
    ],
)
def test_the_canaries_tell_traffic_from_the_model(verdicts: tuple[str, ...], said: str) -> None:
    """Only replays since the drift began count, and without any the cause is left open."""
    replays = tuple(Replay(UNTIL - 600 * n, "idle", v, None, "") for n, v in enumerate(verdicts))
    old = Replay(UNTIL - 3 * DAY, "idle", "routing", None, "before the drift")
    review = replace(with_drift("traffic"), canaries=Canaries((*replays, old), {}))
    assert said in " ".join(words.verdict(review).answers[1].sentences)


def test_late_first_tokens_lead_to_advice() -> None:
    """A bucket whose misses are certain is named with its share; one within chance is not."""
    late = Context("64k", 200, 3.0, 6.0, 3.8, Interval(0.3, 0.24, 0.37, 200))
    fine = Context("4k", 200, 0.1, 0.3, 0.4, Interval(0.06, 0.03, 0.1, 200))
    review = replace(quiet(), latency=Latency((fine, late), 0.03, 0.1))
    told = [action.text for action in words.verdict(review).actions if "first token" in action.text]
    assert len(told) == 1
    assert "64k" in told[0]
    assert "4k," not in told[0]


def test_an_expert_that_died_is_told_apart_from_one_that_never_lived() -> None:
    """Only experts that the baseline's traffic chose count as gone."""
    layer = LayerLoad(5, 0, 2.0, 2.0, 0.9, unused=(3, 9), unused_before=(), gone=(3,))
    review = replace(quiet(), load=Load(1000, (layer,)))
    told = " ".join(action.text for action in words.verdict(review).actions)
    assert "expert 3 of layer 5 got no token" in told
    assert "9 of layer 5" not in told
    assert leads(review)["load"] == "Expert 3 of layer 5 got no token; it did in the baseline."


def test_what_is_not_known_is_listed() -> None:
    """Requests without routing and silent stretches are named with their size; of lost frames see test_losses."""
    coverage = replace(
        quiet().coverage, requests=1000, routed=900,
        silent=(Period(UNTIL - 7200, UNTIL - 3600),), shadowed=0, confidence=0,
    )  # fmt: skip
    said = " ".join(unknowns(replace(quiet(), coverage=coverage, canaries=NOTHING)))
    assert "How 100 requests were routed" in said
    assert "Sun 23 Nov 22:00 to Sun 23 Nov 23:00" in said
    assert "none was compared with a dense model" in said
    assert "no canary was replayed" in said
    assert "MOE_WATCH_CONFIDENCE" in said


def test_an_old_baseline_is_questioned() -> None:
    """A baseline of more than 30 days leads to advice."""
    baseline = drifted().baseline
    assert not isinstance(baseline, Missing)
    review = replace(quiet(), baseline=replace(baseline, promoted_at=UNTIL - 45 * DAY))
    assert any("45 days old" in action.text for action in words.verdict(review).actions)
