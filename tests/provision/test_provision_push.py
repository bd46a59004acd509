"""``moe-watch provision --grafana``: a push that never tramples on anybody's work."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from moe_watch.provision import assets
from moe_watch.provision.catalogue import ALERTS
from tests.support.fake_grafana import TOKEN, VIEWER, State, running
from tests.support.provisioning import PAGE, RULE, UID, grafana, no_token_in_the_environment, push, run, state

__all__ = ["grafana", "no_token_in_the_environment", "state"]


def test_a_first_push_makes_everything(grafana: str, state: State) -> None:
    """Folder, contact point, dashboards and rules exist afterwards; the rules are active and locked in Grafana."""
    done = push(grafana)
    assert done.exit_code == 0, done.output
    assert set(state.dashboards) == set(assets.dashboards())
    assert len(state.rules) == len(ALERTS)
    assert {rule["provenance"] for rule in state.rules.values()} == {"api"}
    assert not any(rule["isPaused"] for rule in state.rules.values())
    assert state.contacts["moe-watch-page"]["settings"]["url"] == PAGE[1]


@pytest.mark.parametrize("versions_as_object", [True, False])
def test_a_second_push_writes_nothing(grafana: str, state: State, *, versions_as_object: bool) -> None:
    """Idempotent, although Grafana gives back more than it was sent."""
    state.versions_as_object = versions_as_object
    push(grafana)
    state.writes.clear()
    done = push(grafana)
    assert state.writes == []
    assert {line[0] for line in done.output.splitlines()} == {"="}


def test_a_dry_run_shows_the_difference_and_writes_nothing(grafana: str, state: State) -> None:
    """The diff names what would change; Grafana is as before."""
    push(grafana)
    state.writes.clear()
    entry = state.dashboards[UID]["dashboard"]
    state.dashboards[UID]["versions"][-1]["message"] = "moe-watch provision of an older version"
    entry["title"] = "an older title"
    done = push(grafana, "--dry-run")
    assert state.writes == []
    assert '-  "title": "an older title",' in done.output
    assert '+  "title": "moe-watch / Overview",' in done.output
    assert "~ dashboard moe-watch-overview: update" in done.output


def test_an_older_dashboard_of_ours_is_updated(grafana: str, state: State) -> None:
    """What moe-watch saved last may be replaced without asking."""
    push(grafana)
    state.dashboards[UID]["versions"][-1]["message"] = "moe-watch provision of an older version"
    push(grafana)
    assert len(state.dashboards[UID]["versions"]) == 2


def test_a_dashboard_that_a_person_saved_is_left_alone(grafana: str, state: State) -> None:
    """Even when the person only moved a panel; --force overwrites it."""
    push(grafana)
    mine = state.dashboards[UID]["dashboard"] | {"title": "with my panel"}
    state.save(mine, "moe-watch", "added my panel")
    done = push(grafana)
    assert done.exit_code == 0
    assert "! dashboard moe-watch-overview: kept (a person saved it last)" in done.output
    assert state.dashboards[UID]["dashboard"]["title"] == "with my panel"
    push(grafana, "--force")
    assert state.dashboards[UID]["dashboard"]["title"] == "moe-watch / Overview"


def edited(rule: dict[str, Any]) -> dict[str, Any]:
    query = rule["data"][0] | {"model": rule["data"][0]["model"] | {"expr": "vector(1)"}}
    return rule | {"data": [query, *rule["data"][1:]]}


@pytest.mark.parametrize(
    "change",
    [
        edited,
        lambda rule: rule | {"for": "30m"},
        lambda rule: rule | {"isPaused": True},
        lambda rule: rule | {"provenance": ""},
        lambda rule: rule | {"labels": rule["labels"] | {"team": "mine"}},
    ],
)
def test_a_rule_that_a_person_changed_is_left_alone(grafana: str, state: State, change: Any) -> None:
    """Query, waiting time, pause, lock or labels: whatever was touched stays, until --force."""
    push(grafana)
    state.rules[RULE] = change(state.rules[RULE])
    before = dict(state.rules[RULE])
    assert "! alert rule TapDown: kept (a person changed it)" in push(grafana).output
    assert state.rules[RULE] == before
    push(grafana, "--force")
    assert push(grafana).output.count("\n=") + 1 == len(assets.dashboards()) + len(ALERTS) + 1


def test_an_older_rule_of_ours_is_updated(grafana: str, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new link in every rule reaches Grafana without --force."""
    push(grafana)
    push(grafana, "--runbooks-url", "https://wiki.example")
    assert state.rules[RULE]["annotations"]["runbook_url"] == "https://wiki.example/TapDown.md"


def test_what_grafana_reads_from_files_is_left_to_the_files(grafana: str, state: State) -> None:
    """The API could not change it anyway; the user is told why."""
    push(grafana)
    state.rules[RULE]["provenance"] = "file"
    state.dashboards[UID]["provisioned"] = True
    done = push(grafana, "--force")
    assert done.exit_code == 0
    assert done.output.count("from a file") == 2


def test_another_contact_point_is_not_redirected_unasked(grafana: str, state: State) -> None:
    """Somebody's pager stays where it leads; --force moves it."""
    push(grafana)
    state.contacts["moe-watch-page"]["settings"]["url"] = "https://other.example"
    assert "kept (it leads elsewhere" in push(grafana).output
    push(grafana, "--force")
    assert state.contacts["moe-watch-page"]["settings"]["url"] == PAGE[1]


def test_a_redacted_contact_point_counts_as_the_same(grafana: str, state: State) -> None:
    """Grafana may hide the address; that is no difference."""
    push(grafana)
    state.contacts["moe-watch-page"]["settings"]["url"] = "[REDACTED]"
    assert "= contact point moe-watch: unchanged" in push(grafana).output


def test_without_a_page_url_policies_route(grafana: str, state: State) -> None:
    """No contact point is made, and the rules leave routing to the organisation's policies."""
    run("--grafana", grafana, token=TOKEN)
    assert state.contacts == {}
    assert not any(rule.get("notification_settings") for rule in state.rules.values())


def test_pruning_removes_only_what_moe_watch_made(grafana: str, state: State) -> None:
    """An old dashboard and rule of ours go; what people made stays, whatever it is called."""
    push(grafana)
    state.save({"uid": "moe-watch-old", "title": "old", "tags": ["moe-watch"]}, "moe-watch", "moe-watch provision 1")
    state.save({"uid": "moe-watch-mine", "title": "mine", "tags": ["moe-watch"]}, "moe-watch", "my own")
    state.save({"uid": "other", "title": "other", "tags": []}, "moe-watch", "")
    state.rules["moe-watch-handmade"] = edited(state.rules[RULE]) | {"annotations": {}, "uid": "moe-watch-handmade"}
    state.rules["moe-watch-old"] = state.rules[RULE] | {"uid": "moe-watch-old"}
    push(grafana)
    assert {"moe-watch-old", "moe-watch-mine", "other"} <= set(state.dashboards)
    push(grafana, "--prune", "--force")
    assert set(state.dashboards) == {*assets.dashboards(), "moe-watch-mine", "other"}
    assert "moe-watch-old" not in state.rules
    assert "moe-watch-handmade" in state.rules


def test_pruning_keeps_an_old_dashboard_that_a_person_changed(grafana: str, state: State) -> None:
    """Once ours, now theirs."""
    push(grafana)
    old = {"uid": "moe-watch-old", "title": "old", "tags": ["moe-watch"]}
    state.save(old, "moe-watch", "moe-watch provision 1")
    state.save(old, "moe-watch", "tuned")
    assert "! dashboard moe-watch-old: kept" in push(grafana, "--prune").output
    assert "moe-watch-old" in state.dashboards


@pytest.mark.parametrize(
    ("token", "advice"), [("wrong", "does not know this token"), (VIEWER, "role Editor")], ids=["401", "403"]
)
def test_a_refused_token_is_explained_and_never_shown(grafana: str, token: str, advice: str) -> None:
    """The message says what to do and does not contain the token."""
    done = push(grafana, token=token)
    assert done.exit_code == 1
    assert advice in done.output
    assert token not in done.output.replace(advice, "")


def test_the_token_comes_from_the_environment_and_is_never_logged(
    grafana: str, state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither output nor any log line at any level has it."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MOE_WATCH_GRAFANA__TOKEN", TOKEN)
    done = run("--grafana", grafana, *PAGE)
    assert done.exit_code == 0
    assert len(state.rules) == len(ALERTS)
    assert TOKEN not in done.output + caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out DIR, --grafana URL"),
        (["--grafana", "http://127.0.0.1:9"], "no token for Grafana"),
        (["--grafana", "http://127.0.0.1:9", "--token", "t"], "no answer from Grafana"),
        (["--out", "x", "--vllm", "no-equals-sign"], "is not NAME=VALUE"),
    ],
)
def test_wrong_input_is_answered_with_what_to_do(arguments: list[str], said: str) -> None:
    """No traceback for a user's mistake."""
    done = run(*arguments)
    assert done.exit_code != 0
    assert said in done.output
    assert not isinstance(done.exception, RuntimeError)


def test_several_data_sources_are_asked_about(grafana: str, state: State) -> None:
    """Rules need one Prometheus: the only one, the default one, or the one that the user names."""
    state.sources = [{"uid": uid, "name": uid, "type": "prometheus", "isDefault": False} for uid in ("a", "b")]
    assert "Pass --datasource" in push(grafana).output
    assert push(grafana, "--datasource", "b").exit_code == 0
    assert state.rules[RULE]["data"][0]["datasourceUid"] == "b"


def test_a_save_at_the_same_moment_is_not_overwritten(grafana: str, state: State) -> None:
    """Grafana's version check stops a push that lost the race, and the message says to run again."""
    push(grafana)
    state.dashboards[UID]["versions"][-1]["message"] = "moe-watch provision of an older version"
    mine = state.dashboards[UID]["dashboard"] | {"title": "mine"}
    state.before_write = lambda: None if len(state.dashboards[UID]["versions"]) > 1 else save(mine)

    def save(content: dict[str, Any]) -> None:
        state.save(content, "moe-watch", "at the same moment")

    done = push(grafana)
    assert done.exit_code == 1
    assert "412" in done.output
    assert "run the command again" in done.output
    assert state.dashboards[UID]["dashboard"]["title"] == "mine"


def test_an_address_that_is_no_grafana_is_said_so(state: State) -> None:
    """A 404 everywhere is not taken for an empty Grafana: the first write fails with its path."""
    with running(state) as url:
        done = run("--grafana", f"{url}/wrong", *PAGE, "--datasource", "prom", token=TOKEN)
    assert done.exit_code == 1
    assert "POST /api/folders answered 404" in done.output
