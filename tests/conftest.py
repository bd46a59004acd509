"""Fixtures that several tests share."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings
from sqlalchemy import Engine

from moe_watch.store import engine, migrate
from tests.support import postgres

# A deadline per example is a timed assert: on a busy machine it fails without a fault.
settings.register_profile("moe-watch", deadline=None)
settings.load_profile("moe-watch")

_VLLMS = re.compile(r"ModuleNotFoundError: No module named '(vllm|torch|transformers|tokenizers|safetensors)\b")
collect_ignore = [] if find_spec("vllm") else ["real"]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a file that cannot be imported without vLLM or what comes with it; any other failure stays one."""
    report = yield
    missing = _VLLMS.search(str(report.longrepr)) if report.failed else None
    if missing and find_spec(missing[1]) is None:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {missing[1]} is not installed")
    return report


@pytest.fixture(scope="module", autouse=True)
def no_sender_outlives_its_module() -> Iterator[None]:
    """Fail where a thread of the tap goes on: tests of other modules would count it, or make it fail."""
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "moe-watch-tap"]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Postgres]:
    """Run a real Postgres, once for all tests."""
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty store, on each database that is supported."""
    return postgres.url_of(request, tmp_path, lambda: request.getfixturevalue("postgres_server"))


@pytest.fixture
def store(store_url: str) -> Iterator[Engine]:
    """Return an empty store at the newest schema."""
    opened = engine.connect(store_url)
    migrate.upgrade(opened)
    yield opened
    opened.dispose()
