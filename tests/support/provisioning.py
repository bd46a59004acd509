"""The command that provisions, over a Grafana that is faked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from moe_watch.cli.commands.provision import command
from tests.support.fake_grafana import TOKEN, State, running

UID = "moe-watch-overview"
RULE = "moe-watch-tapdown"
PAGE = ("--page-url", "https://pager.example/hook")


@pytest.fixture(autouse=True)
def no_token_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave settings to each test."""
    monkeypatch.delenv("MOE_WATCH_GRAFANA__TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def state() -> State:
    """Return a Grafana with one Prometheus and nothing else."""
    return State(sources=[{"uid": "prom", "name": "Prometheus", "type": "prometheus", "isDefault": True}])


@pytest.fixture
def grafana(state: State) -> Iterator[str]:
    """Give the address of a running Grafana."""
    with running(state) as url:
        yield url


def run(*arguments: str | Path, token: str | None = None) -> Result:
    """Run the command."""
    env = {"MOE_WATCH_GRAFANA__TOKEN": token} if token else {}
    return CliRunner(env=env).invoke(command, [str(argument) for argument in arguments])


def push(url: str, *arguments: str, token: str = TOKEN) -> Result:
    """Push to the Grafana at ``url``."""
    return run("--grafana", url, *PAGE, *arguments, token=token)


def load(path: Path) -> Any:
    """Return a YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
