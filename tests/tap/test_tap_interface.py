"""The fake runner of the second generation is held to vLLM's real source, which only a GPU can run.

What the tap takes for granted is read from the installed package: names, signatures, the order of what happens in a
step, and who calls the runner. A vLLM that changes one of them fails here first.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_watch import wire
from moe_watch.tap.engine import compatibility
from moe_watch.tap.engine import runner as tap_runner

pytest.importorskip("vllm.v1.core.sched.scheduler")

import vllm
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.worker.gpu import model_runner as v2
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.warmup import run_mixed_prefill_decode_warmup

from tests.support import fake_engine, fake_worker

ROOT = Path(vllm.__file__).parent


def tree(path: str) -> ast.Module:
    """Return the syntax of a file of vLLM."""
    return ast.parse((ROOT / path).read_text())


def method(path: str, name: str, of: str = "GPUModelRunner") -> ast.FunctionDef:
    """Return a method of a class of vLLM."""
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == of:
            return next(one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == name)
    raise AssertionError(f"{path} has no {of}.{name}")


def calls(node: ast.AST, what: str) -> list[ast.Call]:
    """Return the calls of ``what``, in the order of their lines."""
    found = [one for one in ast.walk(node) if isinstance(one, ast.Call) and ast.unparse(one.func) == what]
    return sorted(found, key=lambda one: one.lineno)


def assigned(node: ast.AST, what: str) -> list[tuple[int, str]]:
    """Return line and value of each assignment to ``what``."""
    found = []
    for one in ast.walk(node):
        targets = one.targets if isinstance(one, ast.Assign) else [one.target] if isinstance(one, ast.AnnAssign) else []
        if any(ast.unparse(target) == what for target in targets):
            found.append((one.lineno, ast.unparse(one.value) if one.value else ""))  # type: ignore[attr-defined]
    return sorted(found)


V1, V2 = "v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py"


def test_the_generations_are_told_apart_by_what_their_constructors_set() -> None:
    """Only the second one has ``req_states``; the first one has ``input_batch`` instead."""
    assert assigned(method(V2, "__init__"), "self.req_states")
    assert assigned(method(V2, "__init__"), "self.execute_model_state")
    assert not assigned(tree(V1), "self.req_states")
    assert assigned(method(V1, "__init__"), "self.input_batch")
    for kind, name in (("v1", "v1"), ("v2", "v2")):
        assert tap_runner.generation(fake_worker.LoadedRunner(kind, 0)) == name


def test_the_fake_runner_has_the_signatures_of_the_real_one() -> None:
    """What the tap replaces and calls takes the same arguments in both."""
    real = inspect.signature(v2.GPUModelRunner.execute_model).parameters
    assert list(real)[:2] == ["self", "scheduler_output"]
    assert real["dummy_run"].default is False
    assert list(inspect.signature(v2.GPUModelRunner.get_model).parameters) == ["self"]
    assert next(iter(inspect.signature(v2.GPUModelRunner._dummy_run).parameters)) == "self"
    assert isinstance(inspect.getattr_static(v2.GPUModelRunner, "eplb_state"), property)
    for name in ("execute_model", "_dummy_run", "get_model"):
        assert callable(getattr(fake_engine.FakeRunner, name))
    assert tap_runner.order.__code__.co_names.count("execute_model_state") == 1


def test_the_state_of_a_step_names_its_requests_in_the_order_of_their_rows() -> None:
    """``execute_model_state.input_batch.req_ids`` is the sorted order in which the tokens lie."""
    assert v2.ExecuteModelState._fields[0] == "input_batch"
    assert InputBatch.__annotations__["req_ids"] == list[str]
    gather = method(V2, "gather_batch_req_state")
    assert calls(gather, "sort_batch_req_ids")
    assert "map(num_tokens_per_req.__getitem__, req_ids)" in ast.unparse(gather)
    prepare = method(V2, "prepare_inputs")
    assert (assigned(prepare, "req_ids")[0][1]) == "batch_req_state.req_ids"
    (batch,) = calls(prepare, "InputBatch")
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in batch.keywords}["req_ids"] == "req_ids"


def test_the_state_is_there_from_the_forward_pass_until_the_tokens_are_sampled() -> None:
    """The tap reads it right after ``execute_model``; nobody takes it away before ``sample_tokens``."""
    execute = method(V2, "execute_model")
    model = [*calls(execute, "self.model"), *calls(execute, "self.cudagraph_manager.run_fullgraph")]
    ((line, value),) = assigned(execute, "self.execute_model_state")
    assert value.startswith("ExecuteModelState(input_batch=input_batch,")
    assert all(call.lineno < line for call in model)
    assert assigned(method(V2, "sample_tokens"), "self.execute_model_state")[0][1] == "None"


def test_requests_are_put_in_and_taken_out_before_the_forward_pass() -> None:
    """As in the fake: what finished goes first, then new ones come, and without tokens nothing runs."""
    execute = method(V2, "execute_model")
    lines = [calls(execute, f"self.{name}")[0].lineno for name in ("finish_requests", "add_requests", "prepare_inputs")]
    assert lines == sorted(lines)
    assert "if scheduler_output.total_num_scheduled_tokens == 0" in ast.unparse(execute)


def test_dummy_runs_say_so_and_are_not_counted() -> None:
    """Profiling, warm-up and graph capture reach ``execute_model`` only through ``_dummy_run``, with ``dummy_run``."""
    runner = next(n for n in tree(V2).body if isinstance(n, ast.ClassDef) and n.name == "GPUModelRunner")
    inner = calls(runner, "self.execute_model")
    assert inner == calls(method(V2, "_dummy_run"), "self.execute_model") or len(inner) == 1
    (call,) = inner
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["dummy_run"] == "True"
    worker = "v1/worker/gpu_worker.py"
    (served,) = calls(method(worker, "execute_model", "Worker"), "self.model_runner.execute_model")
    assert ast.unparse(served.args[0]) == "scheduler_output"
    assert calls(method(worker, "execute_dummy_batch", "Worker"), "self.model_runner._dummy_run")


def test_made_up_requests_come_only_while_the_worker_warms_up() -> None:
    """``warmup_kernels`` executes what looks like requests: called from ``compile_or_warm_up_model`` alone."""
    worker = tree("v1/worker/gpu_worker.py")
    warm_up = method("v1/worker/gpu_worker.py", "compile_or_warm_up_model", "Worker")
    (call,) = calls(worker, "warmup_kernels")
    assert warm_up.lineno <= call.lineno <= (warm_up.end_lineno or 0)
    assert ast.unparse(call.args[1]) == "self.execute_model"


def real_warm_up(engine: fake_worker.AttachedEngine) -> Any:
    """Return vLLM's own warm-up of a mixed step on the fake runner."""
    runner: Any = engine.runner
    runner.is_pooling_model, runner.max_num_reqs, runner.num_speculative_steps = False, 8, 0
    runner.max_model_len, runner.model_state = 512, SimpleNamespace()
    runner.vllm_config = SimpleNamespace(num_lookahead_tokens=0)
    runner.kv_cache_config = SimpleNamespace(kv_cache_groups=[], num_blocks=100)
    runner.kv_connector = SimpleNamespace(set_disabled=lambda _: None)
    runner.works = {f"_v2_mixed_warmup_{kind}_": fake_engine.Work(1, [1], 2, 9) for kind in ("decode", "prefill")}
    return run_mixed_prefill_decode_warmup(runner, runner.execute_model, lambda _: None, 24)


def test_the_real_warm_up_of_the_second_generation_is_nobodys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """VLLM's own code warms the fake runner up: no step and no token are counted, and the tap stays on."""
    with fake_worker.attaching(monkeypatch, tmp_path) as senders:
        engine = fake_worker.AttachedEngine(generation="v2")
        (sender,) = senders
        engine.worker.warm_up = lambda: real_warm_up(engine)
        assert engine.worker.compile_or_warm_up_model()
        assert (sender.status.state, sender.status.steps, sender.status.routed_tokens) == ("on", 0, 0)
        engine.add(fake_engine.Work(0, [11, 12, 13], 3, 9))
        engine.run()
        engine.runner.execute_model(SchedulerOutput.make_empty())
        assert sender.status.routed_tokens == 3 + 2
        assert sender.status.state == "on"


def test_what_the_scheduler_says_of_requests_has_the_names_that_the_tap_reads() -> None:
    """Fields of ``SchedulerOutput`` and its parts."""
    output = SchedulerOutput.make_empty()
    for name in ("total_num_scheduled_tokens", "finished_req_ids", "num_scheduled_tokens", "scheduled_new_reqs"):
        assert hasattr(output, name)
    assert {"req_ids", "num_computed_tokens"} <= set(CachedRequestData.__annotations__)
    assert {"req_id", "num_computed_tokens"} <= set(NewRequestData.__annotations__)
    assert hasattr(NewRequestData, "prompt_len")


def refusing(**changes: Any) -> str:
    """Return why a server configured so is refused."""
    config = EngineArgs(model=str(fake_engine.MODEL), max_model_len=256, enforce_eager=True).create_engine_config()
    for path, value in changes.items():
        owner, _, name = path.rpartition("__")
        setattr(getattr(config, owner), name, value) if owner else setattr(config, name, value)
    return compatibility.refusal(config, "cpu", vllm.__version__)


def test_the_installed_vllm_is_known() -> None:
    """Nothing is refused as it comes."""
    assert refusing() == ""


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"aux_output_config__enable_return_routed_experts": True}, "--enable-return-routed-experts"),
        ({"speculative_config": SimpleNamespace()}, "speculative decoding"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"cache_config__kv_sharing_fast_prefill": True}, "KV-sharing fast prefill"),
    ],
)
def test_what_cannot_be_counted_is_refused_with_the_reason(change: dict[str, Any], word: str) -> None:
    """The slot that vLLM's own capture holds; draft models, whose passes would be counted; and others."""
    assert word in refusing(**change)


def test_a_refusal_is_said_once_and_serving_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is announced, the state says refused, no router is bound, all requests are served."""

    class Refused(fake_worker.AttachedEngine):
        def _put_runner(self, config: Any) -> None:
            config.aux_output_config.enable_return_routed_experts = True
            try:
                super()._put_runner(config)
            finally:
                config.aux_output_config.enable_return_routed_experts = False

    with fake_worker.attaching(monkeypatch, tmp_path) as senders:
        engine = Refused()
        engine.add(fake_engine.Work(0, [11, 12, 13], 3, 9))
        engine.run()
        (sender,) = senders
        health = sender._health({"replica": "r", "source": "s", "seq": 0, "sent_at": 0.0})
        assert isinstance(health, wire.Health)
        assert health.state == "refused"
        assert "capture slot" in health.reason
    assert list(engine._outputs.values()) == [3]
    assert all(layer.capture_fn is None for layer in engine.runner.model)
    assert sum("refused" in record.getMessage() for record in caplog.records) == 1
