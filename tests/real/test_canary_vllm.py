"""Canaries against a real vLLM, through the real tap, sidecar, store and command line; the model is broken in place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from demo import servers
from moe_watch.canary import prompts
from moe_watch.cli.commands.canary import command
from tests.real.support import ahead

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "demo" / "models" / "moe"

_FAULTS = "bench.incidents.faults.worker.Faults"


@dataclass(frozen=True)
class Deployment:
    """A sidecar beside a vLLM that can be broken."""

    url: str
    environment: dict[str, str]

    def call(self, method: str, *arguments: str) -> None:
        """Break or mend the live model."""
        body = {"method": method, "args": list(arguments)}
        httpx.post(f"{self.url}/collective_rpc", json=body, timeout=60).raise_for_status()

    def canary(self, *arguments: str, loads: str = "16") -> Result:
        """Run ``moe-watch canary``."""
        return CliRunner().invoke(command, [*arguments, "--url", self.url, "--loads", loads], env=self.environment)


@ahead.fixture(scope="module")
def canary_deployment() -> Iterator[Deployment]:
    """Start the sidecar and vLLM with the worker extension that injects faults."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = {
            "MOE_WATCH_ENDPOINT": f"ipc://{work}/tap.sock",
            "MOE_WATCH_STORE__URL": f"sqlite:///{work}/moe-watch.db",
            "MOE_WATCH_REPLICA": "canary-test",
            "MOE_WATCH_CONFIG": str(work / "none.toml"),
            "OMP_NUM_THREADS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "PYTHONPATH": str(ROOT),
        }
        args = ["--middleware", "moe_watch.tap.middleware.Middleware", "--worker-extension-cls", _FAULTS]
        sidecar = servers.start_sidecar(work, env=environment)
        vllm = servers.start_vllm("vllm", CHECKPOINT, work=work, served_name="tiny", args=args, env=environment)
        try:
            sidecar.wait_ready("/healthz", 60)
            vllm.wait_ready("/health", 300)
            yield Deployment(vllm.url, environment)
        finally:
            vllm.stop()
            sidecar.stop()


@pytest.fixture(scope="module")
def own_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a set of the user's own: a quarter of the prompts that ship."""
    path = tmp_path_factory.mktemp("set") / "canaries.jsonl"
    lines = [json.dumps({"messages": p.messages}) for p in prompts.load().prompts[::4]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_a_broken_model_is_told_from_a_healthy_one(canary_deployment: Deployment) -> None:
    """Recorded, healthy, broken behind layer 2 and mended: each time the command says so, and where."""
    recorded = canary_deployment.canary("record", "--rounds", "4")
    assert recorded.exit_code == 0, recorded.output
    healthy = canary_deployment.canary("run")
    assert (healthy.exit_code, "healthy: 106 canaries" in healthy.output) == (0, True), healthy.output
    canary_deployment.call("inject_fault", "third_layer_rotated")
    broken = canary_deployment.canary("run")
    assert broken.exit_code == 2, broken.output
    assert "routing: layer 3 is the first that moved" in broken.output
    canary_deployment.call("mend")
    mended = canary_deployment.canary("run")
    assert mended.exit_code == 0, mended.output


def test_a_fault_of_small_batches_is_seen_where_batches_are_small(canary_deployment: Deployment, own_set: str) -> None:
    """A set of the user's own, one prompt at a time and sixteen: the router is coarse in small steps alone.

    Where sixteen are asked at once the last ones are answered in small steps too, so that load may have moved as well.
    """
    recorded = canary_deployment.canary("record", "--rounds", "4", "--prompts", own_set, loads="1,16")
    assert recorded.exit_code == 0, recorded.output
    canary_deployment.call("inject_fault", "coarse_router_small_batch")
    broken = canary_deployment.canary("run", "--prompts", own_set, loads="1,16")
    canary_deployment.call("mend")
    assert broken.exit_code == 2, broken.output
    assert broken.output.startswith("routing: ")
    assert "only at load 16" not in broken.output


def test_vllm_is_compared_with_transformers_on_the_same_weights(canary_deployment: Deployment, own_set: str) -> None:
    """The same routing but for numerics; misplaced experts are seen without a healthy vLLM to compare with."""
    weights = ["--engine", "transformers", "--checkpoint", str(CHECKPOINT), "--model", "tiny"]
    recorded = canary_deployment.canary("record", *weights, "--prompts", own_set)
    assert recorded.exit_code == 0, recorded.output
    parity = canary_deployment.canary("run", "--against", "transformers", "--prompts", own_set, loads="1")
    assert parity.exit_code == 0, parity.output
    canary_deployment.call("inject_fault", "third_layer_rotated")
    broken = canary_deployment.canary("run", "--against", "transformers", "--prompts", own_set, loads="1")
    canary_deployment.call("mend")
    assert broken.exit_code == 2, broken.output
    assert "layer 3 is the first that moved" in broken.output
