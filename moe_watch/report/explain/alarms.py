"""What an alert or an alarm means for the running store, and what its runbook says to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

import msgspec
from sqlalchemy import Engine

from moe_watch import alarms as alarm_kinds
from moe_watch.alarms import Tone
from moe_watch.domain import amounts, status
from moe_watch.provision import assets
from moe_watch.report.build import from_history
from moe_watch.report.build.gather import gather
from moe_watch.report.data.review import Review
from moe_watch.report.data.sections import Alarm, Mark
from moe_watch.report.data.types import Missing, Period
from moe_watch.report.explain import alarm_tables
from moe_watch.report.explain.request import Explanation, Table
from moe_watch.report.render import tables
from moe_watch.report.say import captions, location, phrases, summary, verdict
from moe_watch.settings import Settings
from moe_watch.store import schema
from moe_watch.store.records import alarms as stored_alarms
from moe_watch.store.records import events

_DAY_S: Final = 86_400.0
_CHANNELS: Final = {
    "ood": "requests unlike all of the baseline",
    "layer": "the routing of one layer",
    "mix": "a shift among topics that the baseline knows",
    "confidence": "how sure the router is",
    "expert": "the excess of a single expert",
}


def names() -> list[str]:
    """Return the names of all alerts."""
    return sorted(assets.runbooks())


def find(text: str) -> str | None:
    """Return the alert that ``text`` names, however it is written; None when there is none.

    >>> find("routing-drift"), find("MoeWatchTapDown"), find("nothing")
    ('RoutingDrift', 'TapDown', None)
    """
    plain = re.sub(r"[^a-z0-9]", "", text.lower()).removeprefix("moewatch")
    return next((name for name in names() if name.lower() == plain), None)


def alert(engine: Engine, settings: Settings, name: str, now: float) -> list[Explanation]:
    """Return what the alert ``name`` means for each model of the last day; one explanation when there is no data."""
    report = gather(engine, settings, Period(now - _DAY_S, now), now=now)
    meaning, todo = runbook(name)
    if not report.reviews:
        nothing = "The store has no data of the last 24 hours, so it cannot say what the alert rests on."
        return [Explanation(f"{name}: no data", "unknown", (meaning, nothing), todo=todo, data={"alert": name})]
    return [_of_review(engine, name, review, meaning, todo) for review in report.reviews]


def alarm(engine: Engine, settings: Settings, row: schema.Alarm, now: float) -> Explanation:
    """Return what one alarm is about: since when, where, how sure, by which requests, and what was nearest to it."""
    alarm = from_history.alarm(row)
    end = row.ended_at or now
    report = gather(engine, settings, Period(min(row.began_at, row.flagged_at), max(end, row.flagged_at + 1)), now=now)
    review = next((r for r in report.reviews if any(d.id == row.id for d in r.timeline.alarms)), None)
    sentences = [
        phrases.alarm_sentence(alarm, end),
        f"Flagged {amounts.moment(row.flagged_at)} UTC on {row.replica}: {row.summary}",
    ]
    sentences += [*_certainty(row, settings), *_where(row), *_nearest(engine, row)]
    shown: tuple[Table, ...] = ()
    if review is not None:
        sentences += phrases.cause(review)
        shown = alarm_tables.drift_tables(review)
    _, todo = runbook(next(iter(alarm_kinds.named(row.kind).alerts), ""))
    return Explanation(
        title=f"Alarm {row.id} ({row.kind}, {_STANDS[phrases.standing(alarm)]})",
        tone=_tone(alarm),
        sentences=tuple(sentences),
        tables=shown,
        todo=todo,
        data={name: asdict(alarm) for name in ("alarm", "episode")}  # the second is the former name, for one version
        | {"evidence": row.evidence, "nearest": list(_nearest(engine, row))},
    )


_STANDS: Final = {"open": "open", "unsettled": "closed, not known to be over", "settled": "over"}


def _tone(alarm: Alarm) -> Tone:
    """Return the tone of one alarm: calm once it recovered."""
    return "calm" if phrases.standing(alarm) == "settled" else summary.tone(alarm)


def runbook(name: str) -> tuple[str, tuple[str, ...]]:
    """Return what the alert means and what to do, as its runbook says; nothing for a name without one."""
    text = assets.runbooks().get(name, "")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    meaning = " ".join(_plain(sections.get("What it means", "")).split())
    todo = tuple(_plain(line) for line in re.findall(r"^\d+\. (.+)$", sections.get("What to do", ""), re.MULTILINE))
    return meaning, todo


def _plain(text: str) -> str:
    """Return Markdown without links and marks."""
    return re.sub(r"[*`]", "", re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text))


def _of_review(engine: Engine, name: str, review: Review, meaning: str, todo: tuple[str, ...]) -> Explanation:
    kinds = alarm_kinds.told_by(name)
    mine = [alarm for alarm in review.timeline.alarms if alarm.kind in kinds]
    open_now = [alarm for alarm in mine if alarm.ended_at is None]
    told = [phrases.alarm_sentence(alarm, review.period.until) for alarm in mine]
    if kinds and not mine:
        told = ["No alarm of this kind was open in the last 24 hours."]
    rows = [row for alarm in open_now if (row := stored_alarms.find(engine, alarm.id)) is not None]
    nearest = [sentence for row in rows[:1] for sentence in _nearest(engine, row)]
    told += [sentence for row in rows for sentence in _where(row)]
    facts = _FACTS[name](review) if name in _FACTS else []
    shown = alarm_tables.OF_ALERT[name](review) if name in alarm_tables.OF_ALERT else ()
    tone: Tone = verdict.verdict(review).tone if not kinds else "calm"
    return Explanation(
        title=f"{name} on {review.served.name}, last 24 hours",
        tone="bad" if open_now else alarm_kinds.worst([tone, *map(_tone, mine)]),
        sentences=(*told, *nearest, *facts, meaning),
        tables=shown,
        todo=todo,
        data={"alert": name, "model": review.served.name, "alarms": [asdict(d) for d in mine], "facts": facts},
    )


def _certainty(row: schema.Alarm, settings: Settings) -> Iterator[str]:
    """Say by what it was seen and how often that is wrong."""
    channel = str(row.evidence.get("channel", ""))
    if channel in _CHANNELS:
        promise = row.evidence.get("average_run_length", settings.detect.average_run_length)
        apart = amounts.count(float(promise))
        yield f"Seen in {_CHANNELS[channel]}; false alarms come at least {apart} requests apart."
    ids = [str(name) for name in row.evidence.get("requests", [])][:5]
    if ids:
        yield f"Requests flagged at the time: {', '.join(ids)}."


def _where(row: schema.Alarm) -> tuple[str, ...]:
    """Say where the alarm is, as the sidecar found while it was open."""
    found = row.evidence.get("where")
    try:
        return () if found is None else location.where(msgspec.convert(found, status.Where), row.kind)
    except msgspec.ValidationError:
        return ()  # written by another version


def _nearest(engine: Engine, row: schema.Alarm) -> Iterator[str]:
    """Name the event of the model at its replica that is nearest to the start, within a day."""
    found = events.between(engine, row.began_at - _DAY_S, row.began_at + _DAY_S, row.model_id)
    own = [e for e in found if e.replica in {"", row.replica}]
    if own:
        near = min(own, key=lambda e: abs(e.at - row.began_at))
        apart = amounts.duration(abs(near.at - row.began_at))
        side = "before" if near.at <= row.began_at else "after"
        mark: Mark = from_history.mark(near)
        yield f"Nearest event: {mark.text}, {apart} {side} the start."


def _lead(name: str) -> Callable[[Review], list[str]]:
    def said(review: Review) -> list[str]:
        section = getattr(review, name)
        return [section.why, section.remedy] if isinstance(section, Missing) else [captions.leads(review)[name]]

    return said


def _of_alarm(review: Review) -> list[str]:
    return [*phrases.cause(review), *phrases.largest(review.change)]


def _of_quality(review: Review) -> list[str]:
    return list(verdict.verdict(review).answers[0].sentences)


def _of_coverage(review: Review) -> list[str]:
    return list(captions.unknowns(review))


def _of_baseline(review: Review) -> list[str]:
    known = review.baseline
    if isinstance(known, Missing):
        return [known.why, known.remedy]
    at = known.promoted_at or known.created_at
    age = amounts.duration(review.period.until - at)
    return [
        f"Baseline {known.version} of {known.requests:,} requests was promoted {amounts.moment(at)} UTC, {age} ago."
    ]


def _of_memory(review: Review) -> list[str]:
    share = (
        ""
        if isinstance(review.latency, Missing)
        else f" {amounts.share(review.latency.long_share)} of the prompts were long."
    )
    return [f"Preemptions in the last 24 hours: {amounts.count(review.totals.preemptions)}.{share}"]


_FACTS: Final[dict[str, Callable[[Review], list[str]]]] = {
    "RoutingDrift": _of_alarm,
    "TrafficDrift": _of_alarm,
    "ReplicaDeviates": _of_alarm,
    "CanaryChanged": _lead("canaries"),
    "DeadExperts": lambda review: [
        f"Experts without a single token in the last 24 hours: {tables.unused(review.load)}"
    ],
    "ExpertImbalance": _lead("load"),
    "OODRateHigh": _lead("ood"),
    "QualityGap": _of_quality,
    "GarbledOutput": _of_quality,
    "MoEAdvantageLost": _lead("advantage"),
    "TTFTBudgetBurn": _lead("latency"),
    "KVCachePressure": _of_memory,
    "TapDown": _of_coverage,
    "FramesDropped": _of_coverage,
    "FramesRefused": _of_coverage,
    "BaselineStale": _of_baseline,
}
