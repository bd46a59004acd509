"""Headline, answers, advice and verdict are of one mind, whatever a period was like, and the sidecar is of the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Final, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_watch import alarms
from moe_watch.domain.alarm_endings import Ending
from moe_watch.metrics import series
from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Alarm, Quality, Shift
from moe_watch.report.data.types import Interval
from moe_watch.report.say import phrases, verdict
from moe_watch.sidecar.monitor.snapshot import ReplicaSnapshot
from moe_watch.sidecar.monitor.verdict import decide
from tests.support.judge_bench import Bench
from tests.support.reviews import NOTHING, drifted
from tests.support.store_factory import DAY, UNTIL

KINDS: Final = (*(kind.name for kind in alarms.KINDS), "one to come")
CAUSES: Final = ("moe", "both", "traffic", "none", "unknown")
NOTHING_TO_DO: Final = "Nothing needs doing"
small = st.floats(-0.05, 0.3)


@st.composite
def drifts(draw: st.DrawFn) -> tuple[Alarm, ...]:
    """Return alarms of any kinds that are open, or ended in any way, even one that was not recorded."""
    found = []
    for number in range(draw(st.integers(0, 4))):
        ending = draw(st.sampled_from(["open", None, *get_args(Ending)]))
        began = UNTIL - draw(st.integers(1, 6)) * DAY
        ended = None if ending == "open" else began + 7200
        kind, channel = draw(st.sampled_from(KINDS)), "layer"
        found.append(
            Alarm(number, kind, "gpu-a", began, began + 60, ended, "summary", channel, 3, ending if ended else None)
        )
    return tuple(found)


@st.composite
def qualities(draw: st.DrawFn) -> object:
    """Return quality of any trend, or none, or defects alone."""
    quality = drifted().quality
    assert isinstance(quality, Quality)
    effect, alike = sorted(draw(st.tuples(small, small))), sorted(draw(st.tuples(small, small)))
    middle = Interval(sum(effect) / 2, *effect, 300)
    among = draw(st.sampled_from([None, Interval(sum(alike) / 2, *alike, 200)]))
    shift = draw(st.sampled_from([None, Shift(middle, draw(st.sampled_from(CAUSES)), among)]))  # type: ignore[arg-type]
    whole = replace(quality, shift=shift)
    return draw(st.sampled_from([whole, replace(whole, gap=None), NOTHING]))


@st.composite
def reviews(draw: st.DrawFn) -> Review:
    """Return any week."""
    review = drifted()
    requests = draw(st.sampled_from([0, 40, 5000]))
    routed = draw(st.sampled_from([0, requests // 3, requests]))
    scored = draw(st.sampled_from([0, min(routed, 10), routed]))
    return replace(
        review,
        timeline=replace(review.timeline, alarms=draw(drifts())),
        quality=draw(qualities()),
        coverage=replace(review.coverage, requests=requests, routed=routed, scored=scored),
        totals=replace(review.totals, corrupted=draw(st.sampled_from([0, 0, 3]))),
        baseline=draw(st.sampled_from([review.baseline, NOTHING])),
        canaries=draw(st.sampled_from([review.canaries, NOTHING])),
        load=draw(st.sampled_from([review.load, NOTHING])),
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(reviews())
def test_nothing_that_a_report_says_contradicts_another_part_of_it(review: Review) -> None:
    """A red headline has a red answer and something to do; calm is what no part of the report has anything against."""
    found = verdict.verdict(review)
    quality, routing, _ = found.answers
    tones = {answer.tone for answer in found.answers}
    nothing = any(NOTHING_TO_DO in action.text for action in found.actions)
    raised = review.timeline.alarms
    if found.tone == "bad":
        assert "bad" in tones
    if tones & {"bad", "warn"}:
        assert found.tone == ("bad" if "bad" in tones else "warn")
    if found.tone in {"bad", "warn"} or raised:
        assert not nothing
    if found.tone == "calm":
        assert not raised
        assert not tones & {"bad", "warn"}
    if found.state == "quality" or {d.kind for d in raised if d.ended_at is None} & alarms.OF_OUTPUT:
        assert quality.short not in {"Yes", "No sign of worse", "Not known", "Not known yet"}
        assert quality.tone in {"bad", "warn"}
    if quality.tone in {"bad", "warn"}:
        assert not any(calm in found.headline for calm in ("quality held", "no sign of worse", "not measured"))
    if "steady" in found.headline:
        assert not raised
        assert routing.tone == "calm"
    assert (routing.short == "Yes") == bool({d.kind for d in raised} - {"blind", *alarms.OF_OUTPUT})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(reviews())
def test_advice_comes_from_every_kind_of_alarm_of_the_period(review: Review) -> None:
    """From open ones as from those that ended, the gravest first; that something recovered is said of that alone."""
    found = verdict.verdict(review)
    told = [action for action in found.actions if "alarm:" in action.command]
    kinds = list(dict.fromkeys(drift.kind for drift in phrases.by_gravity(review.timeline.alarms)))
    by_number = {f"moe-watch explain alarm:{drift.id}": drift for drift in review.timeline.alarms}
    assert [by_number[action.command].kind for action in told] == kinds[: len(told)]
    assert told or not kinds
    for action in told:
        settled = phrases.standing(by_number[action.command]) == "settled"
        assert ("recovered: find out" in action.text) == settled


@pytest.mark.parametrize("ending", get_args(Ending))
def test_how_an_alarm_ended_is_told(ending: Ending) -> None:
    """Only a recovery is one; another configuration is no good news, and the demo's report once said that it was."""
    began = UNTIL - DAY
    drift = Alarm(7, "garbled", "gpu-a", began, began + 60, began + 3600, "summary", "", None, ending)
    found = verdict.verdict(replace(drifted(), timeline=replace(drifted().timeline, alarms=(drift,))))
    (sentence, *_) = found.answers[0].sentences
    assert sentence.startswith("Garbled output from about")
    if ending == "recovered":
        assert (found.tone, found.answers[0].short) == ("warn", "Not all of the time")
        assert sentence.endswith(": it recovered.")
    else:
        assert (found.tone, found.answers[0].short) == ("bad", "Not when it was last watched")
        assert "does not say that it recovered" in sentence
        assert ", until " in found.headline
        assert found.actions[0].text.startswith("Read the outputs with defects")


def watched(*kinds: str) -> ReplicaSnapshot:
    """Return the snapshot of a replica with alarms of ``kinds`` open."""
    bench = Bench()
    monitor = bench.monitors.by_replica["r0"]
    for kind in kinds:
        monitor.begin(kind, bench.now, bench.now, kind, {})
    if "blind" in kinds:
        bench.beat("off")
    return monitor.snapshot(bench.now)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(KINDS, 2)))
def test_sidecar_and_report_speak_of_the_same_alarm_first(one: str, other: str) -> None:
    """There is one order of severity; for each pair both take the same side."""
    live, _ = decide(watched(one, other))
    began = UNTIL - DAY
    drifts = tuple(Alarm(n, k, "a", began, began + 60, None, "", "", None) for n, k in enumerate((other, one)))
    quiet = replace(drifted(), timeline=replace(drifted().timeline, alarms=drifts))
    assert live in series.VERDICTS
    assert verdict.verdict(quiet).state == live
    worst = min((one, other), key=alarms.rank)
    assert live == alarms.named(worst).verdict
