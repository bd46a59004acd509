"""Real vLLM servers, one per configuration and session, and the reference that they are compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import demo
from tests.real.support import ahead
from tests.real.support.families import Mixtral, Others, serving_mixtral, serving_others
from tests.real.support.vllm_server import Tapped, tapped

if TYPE_CHECKING:
    from tests.real.support.routing_reference import Reference

MODELS = Path(next(iter(demo.__path__))) / "models"
# Float32, so that routers see what they see in transformers; a step, a batch and a cache so small that prompts are
# computed in parts, requests wait for each other and are preempted.
STRICT = (
    *("--dtype", "float32", "--max-num-seqs", "32", "--max-num-batched-tokens", "64"),
    *("--block-size", "32", "--num-gpu-blocks-override", "160", "--max-model-len", "512"),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the servers that tests will ask for."""
    ahead.begin(config, items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop those that none has asked for."""
    if ahead.AHEAD in session.config.stash:
        session.config.stash[ahead.AHEAD].close()


@ahead.fixture(scope="module")
def vllm_moe() -> Iterator[Tapped]:
    """Serve the tiny MoE with the tap and the middleware on; every text is sampled."""
    env = {"MOE_WATCH_SAMPLE_RATE": "1"}
    with tempfile.TemporaryDirectory() as work, tapped(MODELS / "moe", Path(work), env=env) as server:
        yield server


@ahead.fixture(scope="session")
def vllm_dense() -> Iterator[Tapped]:
    """Serve the tiny dense model with the tap and the middleware on."""
    with tempfile.TemporaryDirectory() as work, tapped(MODELS / "dense", Path(work)) as server:
        yield server


@ahead.fixture(scope="module")
def vllm_strict() -> Iterator[Tapped]:
    """Serve the tiny MoE in float32, where memory and steps are scarce."""
    with tempfile.TemporaryDirectory() as work, tapped(MODELS / "moe", Path(work), *STRICT) as server:
        yield server


@ahead.fixture(scope="session")
def mixtral() -> Iterator[Mixtral]:
    """Serve Mixtral with random weights, with the tap and without."""
    with tempfile.TemporaryDirectory() as work, serving_mixtral(Path(work), STRICT) as servers:
        yield servers


@ahead.fixture(scope="module")
def others() -> Iterator[Others]:
    """Serve Qwen3-MoE with random weights, and the tiny MoE compiled."""
    with tempfile.TemporaryDirectory() as work, serving_others(Path(work), MODELS / "moe", STRICT) as servers:
        yield servers


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Return the tiny MoE in transformers."""
    from tests.real.support.routing_reference import Reference  # noqa: PLC0415 - torch is slow to import

    return Reference(MODELS / "moe")
