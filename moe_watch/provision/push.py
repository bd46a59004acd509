"""Bring a Grafana to the wanted state: plan what differs, show it, do it.

Nothing is overwritten that a person changed or made, unless forced; nothing is deleted that moe-watch did not make.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from moe_watch.provision import grafana_rules, marks
from moe_watch.provision.client import Grafana

Action = Literal["create", "update", "unchanged", "delete", "kept"]
DASHBOARD_TAG: Final = "moe-watch"
_REDACTED: Final = "[REDACTED]"
# What Grafana itself writes into a dashboard.
_GRAFANAS_OWN: Final = frozenset({"id", "version", "schemaVersion", "iteration"})


@dataclass(frozen=True)
class Wanted:
    """The state to reach; ``contact`` None: leave contact points alone."""

    dashboards: Mapping[str, dict[str, Any]]
    rules: list[dict[str, Any]]
    contact: dict[str, Any] | None


@dataclass(frozen=True)
class Change:
    """One step of a plan: what would happen to one object, why, and how to do it."""

    kind: str
    name: str
    action: Action
    why: str = ""
    diff: str = ""
    do: Callable[[], None] | None = None


def plan(grafana: Grafana, wanted: Wanted, *, force: bool, prune: bool) -> list[Change]:
    """Return every step from what ``grafana`` has to ``wanted``, in the order in which they must be done."""
    changes = [*_folder(grafana), *_contact(grafana, wanted.contact, force=force)]
    changes += [_dashboard(grafana, uid, content, force=force) for uid, content in wanted.dashboards.items()]
    live = {rule["uid"]: rule for rule in grafana.rules()}
    changes += [_rule(grafana, live.get(rule["uid"]), rule, force=force) for rule in wanted.rules]
    if prune:
        changes += [*_old_dashboards(grafana, wanted, force=force), *_old_rules(grafana, live, wanted, force=force)]
    return changes


def apply(changes: list[Change]) -> Iterator[Change]:
    """Do what there is to do and yield each step when it is done."""
    for change in changes:
        if change.do is not None:
            change.do()
        yield change


def _folder(grafana: Grafana) -> Iterator[Change]:
    uid, title = grafana_rules.FOLDER_UID, grafana_rules.FOLDER_TITLE
    if grafana.folder(uid) is None:
        yield Change("folder", title, "create", do=partial(grafana.create_folder, uid, title))


def _contact(grafana: Grafana, wanted: dict[str, Any] | None, *, force: bool) -> Iterator[Change]:
    if wanted is None:
        return
    name = wanted["name"]
    live = grafana.contact_point(name, wanted["uid"])
    if live is None:
        yield Change("contact point", name, "create", do=partial(grafana.create_contact_point, wanted))
        return
    same = live["type"] == wanted["type"] and live["settings"].get("url") in {wanted["settings"]["url"], _REDACTED}
    if same:
        yield Change("contact point", name, "unchanged")
    elif not force:
        yield Change("contact point", name, "kept", "it leads elsewhere, and Grafana does not say who changed it")
    else:
        yield Change("contact point", name, "update", do=partial(grafana.update_contact_point, wanted))


def _dashboard(grafana: Grafana, uid: str, wanted: dict[str, Any], *, force: bool) -> Change:
    live = grafana.dashboard(uid)
    folder = grafana_rules.FOLDER_UID
    message = marks.message(wanted)
    save = partial(grafana.save_dashboard, wanted, folder, message)
    if live is None:
        return Change("dashboard", uid, "create", do=partial(save, None))
    if live["meta"].get("provisioned"):
        return Change("dashboard", uid, "kept", "Grafana reads it from a file: write that one with --out")
    last = next(iter(grafana.messages(uid)), "")
    if last == message:
        return Change("dashboard", uid, "unchanged")
    diff = _diff(uid, _own(live["dashboard"]), _own(wanted))
    if not marks.is_ours(last) and not force:
        return Change("dashboard", uid, "kept", "a person saved it last", diff)
    return Change("dashboard", uid, "update", diff=diff, do=partial(save, live["dashboard"]["version"]))


def _rule(grafana: Grafana, live: dict[str, Any] | None, wanted: dict[str, Any], *, force: bool) -> Change:
    title, rule = wanted["title"], marks.marked(wanted)
    if live is None:
        return Change("alert rule", title, "create", do=partial(grafana.create_rule, rule))
    if live.get("provenance") == "file":
        return Change("alert rule", title, "kept", "Grafana reads it from a file: write that one with --out")
    untouched = marks.is_untouched(live)
    if untouched and marks.mark_of(live) == marks.mark_of(rule):
        return Change("alert rule", title, "unchanged")
    diff = _diff(title, marks.essence(live), marks.essence(wanted))
    if not untouched and not force:
        return Change("alert rule", title, "kept", "a person changed it", diff)
    return Change("alert rule", title, "update", diff=diff, do=partial(grafana.update_rule, rule))


def _old_dashboards(grafana: Grafana, wanted: Wanted, *, force: bool) -> Iterator[Change]:
    for uid in grafana.dashboards_tagged(DASHBOARD_TAG, grafana_rules.FOLDER_UID):
        if uid in wanted.dashboards or not uid.startswith(marks.PREFIX):
            continue
        messages = grafana.messages(uid)
        if not any(marks.is_ours(message) for message in messages):
            continue  # somebody else's, whatever it is called
        if marks.is_ours(messages[0]) or force:
            yield Change("dashboard", uid, "delete", do=partial(grafana.delete_dashboard, uid))
        else:
            yield Change("dashboard", uid, "kept", "a person saved it last")


def _old_rules(
    grafana: Grafana, live: Mapping[str, dict[str, Any]], wanted: Wanted, *, force: bool
) -> Iterator[Change]:
    keep = {rule["uid"] for rule in wanted.rules}
    for uid, rule in live.items():
        if uid in keep or not uid.startswith(marks.PREFIX) or marks.mark_of(rule) is None:
            continue
        if marks.is_untouched(rule) or force:
            yield Change("alert rule", rule["title"], "delete", do=partial(grafana.delete_rule, uid))
        else:
            yield Change("alert rule", rule["title"], "kept", "a person changed it")


def _own(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in _GRAFANAS_OWN}


def _diff(name: str, old: Any, new: Any) -> str:
    """Return a unified diff of two JSON values, empty when they are equal."""
    before, after = (json.dumps(x, indent=2, sort_keys=True, ensure_ascii=False).splitlines() for x in (old, new))
    return "\n".join(difflib.unified_diff(before, after, f"{name} (in Grafana)", f"{name} (wanted)", lineterm="", n=2))
