"""The dense shadow against real vLLM servers, which also hold the fake server to their shape."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from demo import corpus, shapes
from moe_watch import wire
from moe_watch.cli.commands import bench_servers
from moe_watch.cli.commands import kv_cache as kv_cache_command
from moe_watch.servers import kv_cache, stream
from moe_watch.servers.client import RefusedError
from moe_watch.servers.dense import DenseClient
from moe_watch.servers.prometheus_text import samples
from moe_watch.settings import Settings, ShadowSettings
from moe_watch.shadow import worker
from moe_watch.shadow.likelihood import nll
from moe_watch.store.records import shadows
from moe_watch.store.schema import Sample
from tests.real.support import ahead
from tests.real.support.alike import assert_like, merged
from tests.real.support.vllm_server import Tapped, VllmServer
from tests.support import shadow_store
from tests.support.fake_openai import FakeOpenAI

pytestmark = pytest.mark.real

MODELS = Path(shapes.__file__).parent / "models"
CHAT = "/v1/chat/completions"
T = TypeVar("T")


def use(server: Tapped, work: Callable[[DenseClient], Awaitable[T]]) -> T:
    async def run() -> T:
        async with httpx.AsyncClient(base_url=server.server.url, timeout=120) as http:
            return await work(DenseClient(http))

    return asyncio.run(run())


def body(**values: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Write to Ana about the order."}], "max_tokens": 16, **values}


def test_vllm_can_do_everything(vllm_dense: Tapped) -> None:
    """The probe finds the model, its context and that it scores."""
    found = use(vllm_dense, lambda client: client.probe())
    assert (found.model, found.max_model_len, found.scores) == ("tiny", 1024, True)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scoring_a_text_equals_having_generated_it(vllm_dense: Tapped, temperature: float) -> None:
    """Prompt log-probabilities behind the rendered chat are those of the generation, token by token, untempered."""

    async def both(client: DenseClient) -> tuple[list[float], list[float], list[int], list[int]]:
        await client.probe()
        own = await client.generate(CHAT, body(temperature=temperature, seed=5))
        assert own.prompt_ids is not None
        assert own.token_ids is not None
        assert own.logprobs is not None
        assert own.prompt_ids == await client.prompt_ids(CHAT, body())
        scored = await client.score(own.prompt_ids, own.token_ids)
        return own.logprobs, scored.logprobs, scored.ranks, own.token_ids

    generated, scored, ranks, ids = use(vllm_dense, both)
    assert scored == pytest.approx(generated, abs=0.02)  # bfloat16, another batch shape
    assert len(scored) == len(ids)
    # At temperature 0 each token is the first choice, save where bfloat16 in another batch shape turns a tie over.
    assert temperature > 0 or (max(ranks) <= 2 and ranks.count(1) >= 0.9 * len(ranks))


def test_likelihood_is_that_of_the_model_itself(vllm_dense: Tapped) -> None:
    """transformers, given the same chat and answer, has the same mean log-likelihood over the answer's tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    answer = "Dear Ana, your order has been sent today."

    async def score(client: DenseClient) -> float | None:
        await client.probe()
        prompt = await client.prompt_ids(CHAT, body())
        return nll((await client.score(prompt, await client.tokenize(answer))).logprobs)

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / "dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODELS / "dense", dtype=torch.bfloat16)
    chat = tokenizer.apply_chat_template(body()["messages"], add_generation_prompt=True, tokenize=False)
    before = tokenizer(chat, add_special_tokens=False)["input_ids"]
    after = tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].float().log_softmax(-1)
    expected = -sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(after)) / len(after)
    assert use(vllm_dense, score) == pytest.approx(expected, abs=0.03)


def test_stop_token_is_left_out(vllm_dense: Tapped) -> None:
    """An output that ends by itself has no end-of-turn token in its ids or log-probabilities."""

    async def generate(client: DenseClient) -> tuple[str, list[int] | None]:
        await client.probe()
        own = await client.generate(CHAT, body(temperature=0, max_tokens=400, logit_bias={"5": 3.0}))
        return own.finish_reason, own.token_ids

    reason, ids = use(vllm_dense, generate)
    assert reason == "stop"
    assert 5 not in (ids or [])


def test_too_long_is_refused_not_failed(vllm_dense: Tapped) -> None:
    """VLLM's 400 for a prompt beyond the context is this request's, not the server's, trouble."""
    with pytest.raises(RefusedError, match="status 400"):
        use(vllm_dense, lambda client: client.generate(CHAT, {"messages": [{"role": "user", "content": "a " * 2000}]}))


def test_samples_are_replayed_end_to_end(vllm_moe: Tapped, vllm_dense: Tapped, tmp_path: Path) -> None:
    """Answers of the real MoE come out scored by the real dense model, and the MoE's server gets no request for it."""
    store = shadow_store.make(tmp_path)
    prompts = [corpus.prompts(domain, 2, 3)[1] for domain in corpus.NORMAL]
    with Session(store) as session, session.begin():
        for pk, text in enumerate(prompts, 1):
            messages = [{"role": "user", "content": text}]
            answer = vllm_moe.server.chat(text, max_tokens=24)
            usage = answer["usage"]
            tokens = {"prompt_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
            shadow_store.add_request(session, pk, finish_reason=answer["choices"][0]["finish_reason"], **tokens)
            session.add(
                Sample(
                    request_pk=pk,
                    endpoint=CHAT,
                    prompt=json.dumps(messages),
                    sample_rate=1.0,
                    output=answer["choices"][0]["message"]["content"],
                    expires_at=1e12,
                    params={"temperature": 0, "max_tokens": 24},
                )
            )
    before = served(vllm_moe)

    async def run() -> None:
        shadow = ShadowSettings(url=vllm_dense.server.url, base_rate=1.0, requests_per_s=100, tokens_per_s=1e6)
        task = asyncio.create_task(worker.run(Settings(shadow=shadow), store))
        while len(shadow_store.rows(store)) < len(prompts):  # noqa: ASYNC110 - a store has no event
            await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 120))
    rows = list(shadow_store.rows(store).values())
    assert {row.outcome for row in rows} == {"scored"}
    assert all(0 <= (row.top1 or 0) <= 1 and row.nll_moe_output is not None for row in rows)
    assert all(row.dense_ttft_s and row.dense_tpot_s and row.dense_concurrency for row in rows)
    assert served(vllm_moe) == before


def served(server: Tapped) -> float:
    """Return how many requests the server has ever finished."""
    text = httpx.get(server.server.url + "/metrics").text
    return sum(one.value for one in samples(text, "vllm:request_success_total"))


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_fake_server_streams_in_the_real_shape(vllm_dense: Tapped, path: str) -> None:
    """Every field that the fake's stream has, the real one's has, of the same type."""
    asked = body() if path == CHAT else {"prompt": "Dear", "max_tokens": 8}
    wanted = {**asked, "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    wanted |= {"logprobs": True} if path == CHAT else {"logprobs": 0}

    def events(text: str) -> list[Any]:
        return [event for line in text.encode().splitlines() if (event := stream.event(line)) is not None]

    real = vllm_dense.server.post(path, wanted).text
    for place in (0, 1, -2, -1):
        assert_like(events(ask_fake(path, wanted).text)[place], merged(events(real)), f"{path}[{place}]")


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/tokenize", {"prompt": "Dear Ana", "add_special_tokens": False}),
        ("/tokenize", {"messages": body()["messages"], "add_generation_prompt": True}),
        ("/v1/completions", {"prompt": [2, 70, 71, 72], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}),
        (CHAT, body()),
    ],
)
def test_fake_server_answers_in_the_real_shape(vllm_dense: Tapped, path: str, asked: dict[str, Any]) -> None:
    """So do its whole answers."""
    assert_like(ask_fake(path, asked).json(), vllm_dense.server.post(path, asked).json(), path)


def test_fake_server_lists_models_and_load_as_the_real_one(vllm_dense: Tapped) -> None:
    """The model list and the running-requests line too."""
    real = httpx.get(vllm_dense.server.url + "/v1/models").json()
    assert_like(ask_fake("/v1/models").json(), real, "/v1/models")
    name = "vllm:num_requests_running"
    for text in (ask_fake("/metrics").text, httpx.get(vllm_dense.server.url + "/metrics").text):
        assert samples(text, name)


def ask_fake(path: str, asked: dict[str, Any] | None = None) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with FakeOpenAI().client() as http:
            return await (http.get(path) if asked is None else http.post(path, json={"model": "dense", **asked}))

    return asyncio.run(ask())


def cache_info(server: VllmServer) -> dict[str, str]:
    """Return what vLLM says of its KV cache."""
    text = httpx.get(server.url + "/metrics").text
    return samples(text, "vllm:cache_config_info")[0].labels


def assert_predicted(server: VllmServer, model: Path, in_flight: int) -> None:
    """Compare blocks and concurrency at the longest context (1,024 tokens) with vLLM's own figures."""
    info, config = cache_info(server), json.loads((model / "config.json").read_text())
    laid = kv_cache.plan(kv_cache.layers(config), block_tokens=int(info["block_size"]), in_flight=in_flight)
    blocks = int(info["num_gpu_blocks"])
    assert int(info["kv_cache_memory_bytes"]) // laid.block_bytes == blocks
    assert blocks / laid.blocks(1024) == pytest.approx(float(info["kv_cache_max_concurrency"]))


def test_kv_cache_is_predicted_for_both_demo_models(vllm_moe: Tapped, vllm_dense: Tapped) -> None:
    """Blocks and maximum concurrency from the config alone are exactly what vLLM reports."""
    for server, name in ((vllm_moe, "moe"), (vllm_dense, "dense")):
        assert_predicted(server.server, MODELS / name, in_flight=2048)


@ahead.fixture(scope="module")
def vllm_mixed() -> Iterator[tuple[VllmServer, Path]]:
    """Serve a model with wider global layers, a short window and shared caches, in small batches."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 2
    shape = {"num_hidden_layers": 12, "layer_types": kinds, "global_head_dim": 64, "sliding_window": 128}
    config = json.loads((MODELS / "moe" / "config.json").read_text()) | shape | {"num_kv_shared_layers": 3}
    config.pop("per_layer_config")
    made = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**config)).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "mixed"
        made.save_pretrained(model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (model / name).write_bytes((MODELS / "moe" / name).read_bytes())
        server = VllmServer.start(model, Path(work), args=["--max-num-batched-tokens", "256"])
        try:
            yield server, model
        finally:
            server.stop()


def test_kv_cache_is_predicted_for_mixed_layers(vllm_mixed: tuple[VllmServer, Path]) -> None:
    """So they are with wider global layers, a short window, shared caches and a small batch."""
    assert_predicted(*vllm_mixed, in_flight=256)


def test_what_fits_is_told_from_the_servers_own_free_blocks(vllm_moe: Tapped) -> None:
    """The command asks a real vLLM; what it says fits is what vLLM's own maximum concurrency allows, at most."""
    said = CliRunner().invoke(kv_cache_command.command, [str(MODELS / "moe"), "--url", vllm_moe.server.url])
    assert said.exit_code == 0, said.output
    blocks, fits = (
        int(n.replace(",", "")) for n in re.findall(r"Free: ([\d,]+) blocks.* fits: ([\d,]+)", said.output)[0]
    )
    assert 0 < blocks <= int(cache_info(vllm_moe.server)["num_gpu_blocks"])
    assert fits >= 1024  # what vLLM itself admits


def test_both_servers_are_loaded_side_by_side(vllm_moe: Tapped, vllm_dense: Tapped, tmp_path: Path) -> None:
    """The command loads both real servers, says where the MoE begins to pay, and keeps it for the report."""
    store = shadow_store.make(tmp_path)
    asked = ["--moe", vllm_moe.server.url, "--dense", vllm_dense.server.url, "--concurrency", "1,4", "--rounds", "2"]
    short = ["--prompt-words", "8", "--max-tokens", "8", "--json"]
    env = {"MOE_WATCH_STORE__URL": store.url.render_as_string()}
    before = len(vllm_moe.collector.of(wire.Request))
    said = CliRunner().invoke(bench_servers.command, [*asked, *short], env=env)
    assert said.exit_code == 0, said.output
    levels = json.loads(said.stdout)["levels"]
    assert [level["concurrency"] for level in levels] == [1, 4]
    assert all(0 < level["ratio_lower"] < level["ratio"] < level["ratio_upper"] for level in levels)
    with Session(store) as session:
        assert len(shadows.benches(session, 0, 1e12, model="tiny")) == 2
    told = vllm_moe.collector
    told.wait(lambda: len(told.of(wire.Request)) >= before + 2 * 3 * 8, "the requests of the load")
    assert all(frame.canary for frame in told.of(wire.Request)[before:])  # no traffic for the detectors
