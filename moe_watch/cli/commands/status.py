"""``moe-watch status``: the verdict of the running sidecar on every replica."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from moe_watch.cli import setup, tables, terminal
from moe_watch.cli.screen import Screen
from moe_watch.domain import alarm_endings, status
from moe_watch.domain.amounts import plural
from moe_watch.domain.sanitise import one_line
from moe_watch.ops.sidecar_api import SidecarError, fetch_status
from moe_watch.report.say import location
from moe_watch.settings import HttpSettings

_MOST_ENDED = 3
_COLOURS = {"healthy": "green", "learning": "yellow", "idle": "dim", "blind": "magenta"}


@click.command()
@click.option("--url", type=setup.ADDRESS, help="Address of the sidecar; by default the one in the settings.")
@click.option("--watch", "follow", is_flag=True, help="Refresh until Ctrl-C.")
@click.option("--json", "raw", is_flag=True, help="Print the JSON of /api/v1/status.")
def command(url: str | None, *, follow: bool, raw: bool) -> None:
    """Show the verdict on every replica; exit code 2 if one has an open alarm or a blind tap."""
    settings = setup.settings()
    try:
        body, seen = fetch_status(settings.http, url)
        if raw:
            terminal.data(json.loads(body))
        elif follow:
            _follow(settings.http, url)
        else:
            tables.show(*parts(seen))
    except SidecarError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        return
    if any(replica.alarms or replica.verdict == "blind" for replica in seen.replicas):
        sys.exit(2)


def _follow(http: HttpSettings, url: str | None) -> None:
    with Live(console=Screen(), refresh_per_second=2) as live:
        while True:
            live.update(view(fetch_status(http, url)[1]))
            time.sleep(1)


def view(seen: status.Status) -> RenderableType:
    """Return ``seen`` for a terminal."""
    return Group(*parts(seen))


def parts(seen: status.Status) -> list[tables.Fields | tables.Prose | str]:
    """Return the header, and each replica behind an empty line."""
    out: list[tables.Fields | tables.Prose | str] = [tables.Prose(_marked(_header(seen)))]
    if not seen.replicas:
        out.append("no tap has spoken yet: `moe-watch doctor` says what to check")
    for replica in seen.replicas:
        out += ["", _replica(replica, seen.now)]
    return out


def _plain(text: str) -> str:
    """Return text from vLLM and its clients that is neither read as markup nor moves the cursor."""
    return escape(one_line(text, 1000))


def _marked(text: str) -> Text:
    return Text.from_markup(text, emoji=False)


def _header(seen: status.Status) -> str:
    refused, lost = sum(seen.frames_refused.values()), sum(seen.frames_lost.values())
    store = "up" if seen.store.up else "[red]away[/red]"
    spooled = f", {seen.store.spool_bytes / 1e6:.1f} MB wait on disk" if seen.store.spool_bytes else ""
    return (
        f"moe-watch {seen.version}, up {_span(seen.now - seen.started_at)}; store {store} "
        f"({seen.store.bytes / 1e6:.1f} MB{spooled}); frames refused {refused}, lost {lost}"
    )


def _replica(replica: status.Replica, now: float) -> tables.Fields:
    fields: list[tuple[str, str]] = []
    colour = _COLOURS.get(replica.verdict, "red")
    serving = f"{_plain(replica.model)} ({_shape(replica)})"
    fields.append(("replica", f"[bold]{_plain(replica.replica)}[/bold] serving {serving}"))
    since = _span(now - replica.since)
    told = any(alarm.summary == replica.reason for alarm in replica.alarms)  # it stands below
    reason = "" if told else f": {_plain(replica.reason)}"
    fields.append(("verdict", f"[{colour} bold]{replica.verdict}[/] for {since}{reason}"))
    tap = replica.tap
    version = f"{_plain(tap.tap_version) or '?'} in vLLM {_plain(tap.vllm_version) or '?'}"
    state = "up" if tap.up else f"[red]{_plain(tap.state)}[/red] {_plain(tap.reason)}"
    fields.append(("tap", f"{state}, {version}"))
    fields.append(
        ("requests", f"{replica.requests}, routed {_percent(replica.coverage)}, joined {_percent(replica.join_ratio)}")
    )
    if replica.baseline is not None:
        promoted = datetime.fromtimestamp(replica.baseline.promoted_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        fields.append(
            (
                "baseline",
                f"{replica.baseline.version} of {promoted}, {plural(replica.baseline.requests, 'request')}",
            )
        )
        interval = f"{replica.ood.lower:.1%} to {replica.ood.upper:.1%}"
        fields.append(("unusual", f"{_percent(replica.ood.value)} of the latest {replica.ood.n} ({interval})"))
        fields.append(("evidence", f"{replica.evidence:.2f} of the alarm threshold"))
    if replica.siblings is not None and replica.siblings.replicas > 1:
        fields.append(("siblings", _siblings(replica.siblings)))
    for alarm in replica.alarms:
        since = _span(now - alarm.began_at)
        fields.append((f"[red]{_plain(alarm.kind)}[/red]", f"since {since}: {_plain(alarm.summary)}"))
        if alarm.where is not None:
            fields.append(("where", " ".join(location.where(alarm.where, alarm.kind))))
    for over in replica.ended[:_MOST_ENDED]:
        ending = f"{_plain(over.kind)} {_span(now - over.ended_at)} ago: {alarm_endings.because(over.ending)}"
        fields.append(("ended", ending))
    if replica.alarms and replica.movers and not any(alarm.where for alarm in replica.alarms):
        moved = [f"layer {m.layer} expert {m.expert}: {m.baseline:.2%} to {m.share:.2%}" for m in replica.movers[:3]]
        fields.append(("moved", "; ".join(moved)))
    if replica.suspects:
        shown = [f"{_plain(suspect.request_id)} (p {suspect.p:.4f})" for suspect in replica.suspects[:3]]
        fields.append(("explain", ", ".join(shown)))
    return tables.Fields([(_marked(name), _marked(value)) for name, value in fields])


def _siblings(found: status.Siblings) -> str:
    like = "[red]differs from[/red]" if found.deviates else "like"
    fleet, more = found.fleet_ood, found.replicas - 1
    others = "other" if more == 1 else f"{more} others"
    together = (
        f"; of all together {_percent(fleet.value)} of {plural(fleet.n, 'request')} are unusual" if fleet.n else ""
    )
    return f"{like} the {others} ({found.evidence:.2f} of the threshold){together}"


def _shape(replica: status.Replica) -> str:
    return f"{replica.layers} x {replica.experts}, top-{replica.top_k}" if replica.layers else "dense"


def _percent(share: float | None) -> str:
    return "none yet" if share is None else f"{share:.1%}"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
