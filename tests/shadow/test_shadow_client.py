"""The dense client against a fake server of vLLM's shape (held to the real one by tests/real/test_shadow.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from moe_watch.servers.client import RefusedError, ServerError
from moe_watch.servers.dense import DenseClient
from moe_watch.shadow import likelihood
from moe_watch.shadow.judge import Judge
from moe_watch.shadow.replay import asked, garbled, unsupported
from tests.support.dense import CHAT, REQUEST, replayed, use
from tests.support.fake_openai import LIKELY, MAX_MODEL_LEN, UNLIKELY, FakeOpenAI


def test_everything_is_measured_where_the_server_can() -> None:
    """A chat request gives both likelihoods, agreement, rank-1 share, latency, load and the weights."""
    row = replayed(FakeOpenAI()).row
    assert row.outcome == "scored"
    assert (row.sample_weight, row.weight) == (2.0, 20.0)
    # "a" follows the template and "x", "f" break the alphabet: three unlikely tokens of eight.
    assert row.nll_moe_output == pytest.approx(-(3 * UNLIKELY + 5 * LIKELY) / 8)
    assert row.nll_dense_output == pytest.approx(-(UNLIKELY + 7 * LIKELY) / 8)
    assert (row.agreement, row.top1) == (0.5, 5 / 8)
    assert (row.moe_tokens, row.dense_tokens) == (8, 8)
    assert row.dense_concurrency == 3
    assert row.dense_ttft_s is not None
    assert row.dense_tpot_s is not None
    assert row.defects == {"moe": [], "dense": []}


def test_only_the_output_is_scored_behind_the_rendered_chat() -> None:
    """What is scored is the output behind the template with the generation prompt, to the letter."""
    server = FakeOpenAI()
    replayed(server)
    scored = [body["prompt"] for path, body in server.asked if "prompt_logprobs" in body][-1]
    assert "".join(map(chr, scored)) == "<user>alphabet\n<assistant>abcdxfgh"


def test_the_request_is_repeated_as_the_client_made_it() -> None:
    """Temperature, seed and JSON mode go along; text never leaves for the MoE's server."""
    server = FakeOpenAI()
    params = {"temperature": 0.7, "seed": 3, "max_tokens": 5, "response_format": "json_object", "user": "bob"}
    row = replayed(server, replace(REQUEST, params=params)).row
    body = next(body for _, body in server.asked if body.get("stream"))
    assert {name: body[name] for name in ("temperature", "seed", "max_tokens")} == {
        "temperature": 0.7,
        "seed": 3,
        "max_tokens": 5,
    }
    assert body["response_format"] == {"type": "json_object"}
    assert "user" not in body
    assert row.agreement is None
    assert row.defects["moe"] == ["json"]


@pytest.mark.parametrize("lacking", ["tokenize", "prompt_logprobs"])
def test_servers_that_cannot_score_give_the_rest(lacking: str) -> None:
    """Without prompt log-probabilities or /tokenize there is no gap, but the dense output, latency and defects are."""
    row = replayed(FakeOpenAI(lacks=frozenset({lacking}))).row
    assert row.outcome == "unscored"
    assert (row.nll_moe_output, row.top1, row.agreement) == (None, None, None)
    assert row.nll_dense_output is not None
    assert row.dense_tpot_s is not None
    assert row.defects["dense"] == []


def test_what_is_lacking_is_said() -> None:
    """The probe names the missing feature."""
    for lacking in ("tokenize", "prompt_logprobs"):
        server = FakeOpenAI(lacks=frozenset({lacking}))
        assert lacking in use(server, lambda client: client.probe()).lacks
    assert use(FakeOpenAI(), lambda client: client.probe()).lacks == ""


def test_server_without_logprobs_at_all() -> None:
    """Then the dense output is scored as the MoE's is."""
    row = replayed(FakeOpenAI(lacks=frozenset({"logprobs"}))).row
    assert row.nll_dense_output == pytest.approx(-(UNLIKELY + 7 * LIKELY) / 8)


def test_trouble_and_refusal_are_told_apart() -> None:
    """503 is the server's trouble and worth another try; 400 is this request's and is not."""
    with pytest.raises(ServerError):
        use(FakeOpenAI(fail=9), lambda client: client.probe())
    body = {"messages": [{"role": "user", "content": "x" * MAX_MODEL_LEN}]}
    with pytest.raises(RefusedError, match="status 400"):
        use(FakeOpenAI(), lambda client: client.generate(CHAT, body))


def test_a_key_that_the_server_does_not_know_is_no_request_to_blame() -> None:
    """A refused list of models is trouble with the server, not a request that it will not take."""
    with pytest.raises(ServerError, match=r"does not say what it serves.*401"):
        use(FakeOpenAI(refuses=True), lambda client: client.probe())


@pytest.mark.parametrize(
    "event",
    ['{"choices": ["text"]}', '{"choices": [{"logprobs": {"content": [{"token": "a"}]}}]}', "[1]", "{cut", "3"],
)
def test_an_answer_of_another_shape_is_trouble_and_no_crash(event: str) -> None:
    """Whatever a stream holds, the caller gets the one error that it knows."""

    async def work(client: DenseClient) -> object:
        answer = httpx.Response(200, text=f"data: {event}\n\n")
        client.http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer), base_url="http://dense")
        return await client.generate(CHAT, {"messages": []})

    with pytest.raises(ServerError):
        use(FakeOpenAI(), work)


@pytest.mark.parametrize("answered", ["[]", '{"tokens": 3}', '{"ids": [1]}'])
def test_another_servers_tokenize_is_none(answered: str) -> None:
    """A route of that name that answers otherwise counts as lacking; the server is used for the rest."""

    async def work(client: DenseClient) -> str:
        def answer(request: httpx.Request) -> httpx.Response:
            models = '{"data": [{"id": "dense"}]}'
            return httpx.Response(200, text=models if request.url.path == "/v1/models" else answered)

        client.http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://dense")
        return (await client.probe()).lacks

    assert use(FakeOpenAI(), work) == "/tokenize"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": 1}, "images"),
        ({"prompt_truncated": True}, "truncated"),
        ({"output": " "}, "empty"),
        ({"params": {"response_format": "json_schema"}}, "schema"),
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"prompt_tokens": 5000}, "too long"),
        ({}, ""),
    ],
)
def test_what_cannot_be_compared_fairly_is_left_out(change: dict[str, Any], reason: str) -> None:
    """Images, cut texts, schemas, other endpoints and prompts beyond the dense model's context are not replayed."""
    abilities = use(FakeOpenAI(), lambda client: client.probe())
    assert unsupported(replace(REQUEST, **change), abilities) == reason


def test_completions_work_too() -> None:
    """A plain completion is scored behind its prompt as it is."""
    server = FakeOpenAI()
    row = replayed(server, replace(REQUEST, endpoint="/v1/completions", prompt="abc", output="defg")).row
    assert row.outcome == "scored"
    assert row.nll_moe_output == pytest.approx(-LIKELY)


def test_broken_messages_are_refused() -> None:
    """Sampled messages that are not JSON do not reach the server."""
    with pytest.raises(RefusedError, match="not JSON"):
        replayed(FakeOpenAI(), replace(REQUEST, prompt="[{cut"))


@pytest.mark.parametrize(
    ("verdicts", "preference"), [(["A", "B"], 1), (["B", "A"], -1), (["A", "A"], 0), (["TIE", "B"], 0), (["?", "?"], 0)]
)
def test_judge_counts_only_what_survives_a_swap(verdicts: list[str], preference: float) -> None:
    """A judge that always says A has no preference."""
    server = FakeOpenAI(verdicts=list(verdicts))

    async def ask(client: DenseClient) -> float:
        return await Judge(client.http, "judge").prefers_first("question", "one", "two")

    assert use(server, ask) == preference


def test_measures_of_nothing_are_unknown() -> None:
    """No tokens, no number."""
    assert likelihood.nll([]) is None
    assert likelihood.agreement([], [1]) is None


def test_signals_look_at_what_was_written_not_at_its_json() -> None:
    """An English answer to a Russian chat is a switch of script: the JSON's own words are no part of the prompt."""
    chat = json.dumps([{"role": "user", "content": "Как отсортировать список? [image]"}], ensure_ascii=False)
    request = replace(REQUEST, prompt=chat, output="I am sorry about the trouble with your order.")
    assert garbled(request) == ["script"]
    assert asked(replace(request, prompt="[{")) == "[{"
    assert asked(replace(request, endpoint="/v1/completions", prompt="[]")) == "[]"
