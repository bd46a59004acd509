"""The kv-cache command."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from moe_watch.cli.commands import kv_cache
from tests.servers.test_kv_cache import DENSE_31B, MIXTRAL

METRICS = """vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",engine="0"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a folder with a config."""
    (tmp_path / "config.json").write_text(json.dumps(DENSE_31B | {"max_position_embeddings": 262_144}))
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(kv_cache.command, arguments)
    return done.exit_code, done.output


def test_contexts_and_what_fits(checkpoint: Path) -> None:
    """At 128K the 31B needs 10.8 GiB, and 40 GiB of free cache hold its longest context."""
    code, said = run(str(checkpoint), "--free-gib", "40", "--in-flight", "2048")
    assert code == 0
    assert "131,072" in said
    assert "10.781" in said
    assert "262,144 tokens" in said


def test_free_blocks_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --url the server's own block size and free blocks are used: 750 blocks of 16 tokens."""
    (tmp_path / "config.json").write_text(json.dumps(MIXTRAL | {"max_position_embeddings": 32_768}))
    reply = httpx.Response(200, text=METRICS, request=httpx.Request("GET", "http://moe/metrics"))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: reply)
    assert (
        "Free: 750 blocks. The longest request that fits: 12,000 tokens." in run(str(tmp_path), "--url", "http://m")[1]
    )


def test_other_servers_and_configs_are_refused_in_words(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without vLLM's metrics, a config without layers and an unknown type each get a sentence."""
    reply = httpx.Response(200, text="", request=httpx.Request("GET", "http://x/metrics"))
    monkeypatch.setattr(httpx, "get", lambda *_, **__: reply)
    assert "is it a vLLM server?" in run(str(checkpoint), "--url", "http://x")[1]
    assert "KV cache of 'nf4'" in run(str(checkpoint), "--dtype", "nf4")[1]
    (checkpoint / "config.json").write_text("{}")
    assert "no num_hidden_layers" in run(str(checkpoint))[1]


@pytest.mark.parametrize("size", ["nan", "-1", "inf"])
def test_a_size_that_is_none_is_refused(checkpoint: Path, size: str) -> None:
    """Neither a stack trace nor a number of blocks below zero."""
    code, said = run(str(checkpoint), "--free-gib", size)
    assert code == 2
    assert "is no size of a cache" in said


def test_json_that_is_no_config_is_said_so(tmp_path: Path) -> None:
    """A list is not looked into."""
    (tmp_path / "config.json").write_text("[]")
    code, said = run(str(tmp_path))
    assert code == 1
    assert "is no config of a model" in said
