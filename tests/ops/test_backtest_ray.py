"""The backtest on a real Ray cluster on this machine: the answer of one process, from workers that read for themselves.

``pip install 'moe-watch[ray]'`` brings Ray; `make setup` installs it, so in CI it is there.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine

from moe_watch.cli.commands import backtest as command
from moe_watch.ops import archive, backtest
from moe_watch.store.read import history as rows
from moe_watch.store.records import baselines, served_models
from tests.ops.test_history import store

__all__ = ["store"]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None and "CI" not in os.environ,
        reason="Ray is not installed: pip install 'moe-watch[ray]'",
    ),
]


@pytest.fixture
def exported(store: Engine, tmp_path: Path) -> tuple[Engine, str]:
    """Export the store's two replicas to Parquet."""
    address = str(tmp_path / "parquet")
    archive.write(rows.rows(store, served_models.by_name(store)[0], 0, 4e9), served_models.by_name(store)[0], address)
    return store, address


def test_a_cluster_says_what_one_process_says(exported: tuple[Engine, str]) -> None:
    """The same outcomes, replica by replica, alarms and their times included; two workers share the work."""
    store, address = exported
    model = served_models.by_name(store)[0]
    baseline = baselines.load(store, baselines.active(store)[model.identity].id)
    source = archive.ParquetSource(address, archive.shapes(address)[model.identity])
    names = archive.replicas(address, model.identity)
    here = list(backtest.run_here(names, source, baseline, 1000, 0.01))
    there = list(backtest.run_on_ray(names, source, baseline, 1000, 0.01, address="local"))
    assert there == here
    assert [one.requests for one in there] == [400, 400]
    assert [len(one.fired) for one in there] == [0, 1]


def test_the_command_runs_on_a_cluster(exported: tuple[Engine, str]) -> None:
    """``--ray local`` prints what the command without it prints."""
    _, address = exported
    period = ["--since", "2026-09-01", "--until", "2026-12-01", "--from", address]
    alone = CliRunner().invoke(command.command, period)
    spread = CliRunner().invoke(command.command, [*period, "--ray", "local"])
    assert spread.exit_code == 0, spread.output
    assert "moved: 400 requests" in alone.output
    assert spread.output == alone.output
