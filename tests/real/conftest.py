"""Real vLLM servers, one per configuration and session, and the reference that they are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import moe_watch.demo
from tests.real.families import Mixtral, Others, serving_mixtral, serving_others
from tests.real.vllm_server import Tapped, tapped

if TYPE_CHECKING:
    from tests.real.routing_reference import Reference

MODELS = Path(next(iter(moe_watch.demo.__path__))) / "models"
# Float32, so that routers see what they see in transformers; a step, a batch and a cache so small that prompts are
# computed in parts, requests wait for each other and are preempted.
STRICT = (
    *("--dtype", "float32", "--max-num-seqs", "32", "--max-num-batched-tokens", "64"),
    *("--block-size", "32", "--num-gpu-blocks-override", "160", "--max-model-len", "512"),
)


@pytest.fixture(scope="session")
def vllm_moe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    """Serve the tiny MoE with the tap and the middleware on; every text is sampled."""
    env = {"MOE_WATCH_SAMPLE_RATE": "1"}
    with tapped(MODELS / "moe", tmp_path_factory.mktemp("moe"), env=env) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    """Serve the tiny dense model with the tap and the middleware on."""
    with tapped(MODELS / "dense", tmp_path_factory.mktemp("dense")) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    """Serve the tiny MoE in float32, where memory and steps are scarce."""
    with tapped(MODELS / "moe", tmp_path_factory.mktemp("strict"), *STRICT) as server:
        yield server


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Return the tiny MoE in transformers."""
    from tests.real.routing_reference import Reference  # noqa: PLC0415 - torch is slow to import

    return Reference(MODELS / "moe")


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixtral]:
    """Serve Mixtral with random weights, with the tap and without."""
    with serving_mixtral(tmp_path_factory.mktemp("mixtral"), STRICT) as servers:
        yield servers


@pytest.fixture(scope="session")
def others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Others]:
    """Serve Qwen3-MoE with random weights, and the tiny MoE compiled."""
    with serving_others(tmp_path_factory.mktemp("others"), MODELS / "moe", STRICT) as servers:
        yield servers
