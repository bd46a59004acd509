"""Real vLLM servers, one per configuration and session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vllm_server import Tapped, tapped

import moe_watch.demo

MODELS = Path(next(iter(moe_watch.demo.__path__))) / "models"


@pytest.fixture(scope="session")
def vllm_moe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    """Serve the tiny MoE with the tap and the middleware on."""
    with tapped(MODELS / "moe", tmp_path_factory.mktemp("moe")) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tapped]:
    """Serve the tiny dense model with the tap and the middleware on."""
    with tapped(MODELS / "dense", tmp_path_factory.mktemp("dense")) as server:
        yield server
