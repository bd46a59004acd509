"""The kinds of alarms: what each is called, what it means, what to do about it, and what is worse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Tone = Literal["bad", "warn", "unknown", "calm"]
Verdict = Literal["quality", "blind", "routing", "deployment", "traffic"]
_TONES: Final[tuple[Tone, ...]] = ("bad", "warn", "unknown", "calm")


@dataclass(frozen=True)
class AlarmKind:
    """One kind of alarm in the words of every surface; the defaults are those of a kind that this version lacks."""

    name: str
    title: str
    verdict: Verdict = "deployment"  # that it leads to
    is_open: str = "An alarm is open"  # begins a headline
    was_open: str = "An alarm was raised"
    advice: str = "Look into the alarm."
    alerts: tuple[str, ...] = ()  # that tell of it, its own first
    of_output: bool = False  # it is about what the MoE writes, not about how it routes


KINDS: Final = (
    AlarmKind(
        name="garbled",  # the worst: people read it, and it is seen without any routing
        title="Garbled output",
        verdict="quality",
        is_open="The MoE writes broken text",
        was_open="The MoE wrote broken text",
        advice="Read the outputs with defects; if usual requests have them, take back the last change of the model.",
        alerts=("GarbledOutput",),
        of_output=True,
    ),
    AlarmKind(
        name="blind",  # of routing nothing is known any more
        title="Blind tap",
        verdict="blind",
        is_open="The tap sees no routing",
        was_open="The tap saw no routing",
        advice="Find out why routing is missing.",
        alerts=("TapDown",),
    ),
    AlarmKind(
        name="routing",  # the same prompts: a fault of the model, of which worse output is an effect
        title="Routing drift",
        verdict="routing",
        is_open="The same prompts go to other experts",
        was_open="The same prompts went to other experts",
        advice="Compare with the last change of vLLM, weights, quantisation or kernels, and take it back.",
        alerts=("RoutingDrift", "OODRateHigh"),
    ),
    AlarmKind(
        name="quality",
        title="Worse output",
        verdict="quality",
        is_open="The MoE writes worse",
        was_open="The MoE wrote worse",
        advice="Read the worst requests below; take back the last change of the model's deployment if there was one.",
        alerts=("QualityGap",),
        of_output=True,
    ),
    AlarmKind(
        name="replica",
        title="A replica that differs from its siblings",
        verdict="deployment",
        is_open="One replica differs from its siblings",
        was_open="One replica differed from its siblings",
        advice="Take the replica that differs out of the load balancer and compare its start with its siblings'.",
        alerts=("ReplicaDeviates",),
    ),
    AlarmKind(
        name="traffic",
        title="Traffic drift",
        verdict="traffic",
        is_open="Traffic is unlike the baseline",
        was_open="Traffic left the baseline",
        advice="See what the new requests are; if they are here to stay, fit a new baseline on them and promote it.",
        alerts=("TrafficDrift", "OODRateHigh"),
    ),
    AlarmKind(
        name="dead_experts",  # after traffic: when a whole domain leaves, its experts fall silent as well
        title="Dead experts",
        verdict="deployment",
        is_open="Experts get no tokens",
        was_open="Experts got no tokens",
        advice="Check the expert map and the checkpoint: experts without tokens are a fault of the deployment.",
        alerts=("DeadExperts",),
    ),
)  # worst first

_BY_NAME: Final = {kind.name: kind for kind in KINDS}
_RANKS: Final = {kind.name: place for place, kind in enumerate(KINDS)}
OF_OUTPUT: Final = frozenset(kind.name for kind in KINDS if kind.of_output)


def named(name: str) -> AlarmKind:
    """Return the kind of that name; one made up from the name where another version wrote it.

    >>> named("garbled").title, named("one_to_come").title
    ('Garbled output', 'One to come')
    """
    return _BY_NAME.get(name) or AlarmKind(name, name.replace("_", " ").capitalize())


def rank(name: str) -> int:
    """Return the place of a kind of alarm, 0 for the worst; an unknown kind comes last.

    >>> sorted(["traffic", "one to come", "garbled"], key=rank)
    ['garbled', 'traffic', 'one to come']
    """
    return _RANKS.get(name, len(KINDS))


def told_by(alert: str) -> frozenset[str]:
    """Return the names of the kinds that an alert tells of; none where it tells of something else.

    >>> sorted(told_by("OODRateHigh")), sorted(told_by("FramesDropped"))
    (['routing', 'traffic'], [])
    """
    return frozenset(kind.name for kind in KINDS if alert in kind.alerts)


def worst(tones: Iterable[Tone]) -> Tone:
    """Return the worst of ``tones``; "unknown" where there is none.

    >>> worst(["calm", "bad", "unknown"])
    'bad'
    """
    return min(tones, key=_TONES.index, default="unknown")
