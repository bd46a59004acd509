"""The canary set, its way to a server, and what is said of the outcome."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_watch import wire
from moe_watch.canary import marks, prompts, replay, rounds, verdict_text
from moe_watch.canary.rounds import assemble
from moe_watch.detect.canary.comparison import Judgement, judge
from moe_watch.detect.canary.replay import Round, aligned
from moe_watch.servers.client import ServerError
from moe_watch.store.records.canaries import Routed
from tests.support.canary_world import Fault, World
from tests.support.frames import Tap

KEY = "k" * 64


def test_the_set_that_ships_has_a_hundred_prompts_with_safety_among_them() -> None:
    """About a hundred short prompts, some that a model should refuse and some that only look so."""
    ids = [prompt.id for prompt in prompts.load().prompts]
    assert len(ids) >= 100
    assert sum(name.startswith("safety") for name in ids) >= 8
    assert sum(name.startswith("lookalike") for name in ids) >= 8


def test_the_version_follows_from_everything_that_is_asked() -> None:
    """Another endpoint or number of tokens is another set."""
    versions = {prompts.load(endpoint=e, max_tokens=n).version for e in ("chat", "completions") for n in (4, 8)}
    assert len(versions) == 4


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"prompt": "hello"}'], "1 prompts; 20 to 1000"),
        (["not json"], "line 1"),
        (['{"text": "hello"}'], 'needs "prompt"'),
        (["[1]"], "not an object"),
        (['{"prompt": "same"}'] * 20, "twice"),
    ],
)
def test_a_bad_set_is_refused_with_the_reason(tmp_path: Path, lines: list[str], complaint: str) -> None:
    """Each mistake in a set of the user's own is named."""
    path = tmp_path / "set.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(prompts.BadCanarySet, match=complaint):
        prompts.load(path)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), layers=st.integers(1, 4), noisy=st.booleans())
def test_a_round_survives_the_store(seed: int, layers: int, *, noisy: bool) -> None:
    """A round read back from its bytes is the round, array by array."""
    world = World(seed=seed, n=5, layers=layers, noise=0.1 * noisy)
    round_ = world.round(loads=("1", "mixed"))
    again = Round.from_bytes(round_.to_bytes())
    for one, other in zip(round_.replays, again.replays, strict=True):
        assert (one.load, one.top_k) == (other.load, other.top_k)
        for name, values in one.arrays().items():
            np.testing.assert_array_equal(values, other.arrays()[name])


def test_tokens_of_different_lengths_are_aligned() -> None:
    """Replays with longer and shorter prompts can be compared."""
    world = World(n=5)
    one = world.replay("1")
    wide, narrow = aligned([one, world.replay("1")])
    assert wide.prompt_logprob.shape == narrow.prompt_logprob.shape


class Served:
    """A stand-in for a server: it answers as vLLM does, and keeps what it was asked."""

    def __init__(self, *, chat: bool = True, numbers: bool = True) -> None:
        self.chat, self.numbers = chat, numbers
        self.asked: list[tuple[httpx.Headers, dict[str, Any]]] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "tiny"}]})
        body = json.loads(request.content)
        self.asked.append((request.headers, body))
        if "chat" in request.url.path and not self.chat:
            return httpx.Response(400, json={"error": "no chat template"})
        if "logprobs" in body and not self.numbers:
            return httpx.Response(400, json={"error": "Out of range float values are not JSON compliant"})
        return httpx.Response(200, json=self._body(request, body))

    def _body(self, request: httpx.Request, body: dict[str, Any]) -> dict[str, Any]:
        chat = "chat" in request.url.path
        content = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
        logprobs = {"content": content} if chat else {"tokens": ["a", "b"], "token_logprobs": [-0.5, -1.5]}
        scored = [None, {"7": {"logprob": -2.0}}] if "prompt_logprobs" in body else None
        choice = {"token_ids": [4, 5], "logprobs": logprobs if "logprobs" in body else None}
        if not chat:
            choice |= {"prompt_token_ids": [1, 7], "prompt_logprobs": scored}
        prefix = "chatcmpl" if chat else "cmpl"
        found = {"prompt_token_ids": [1, 7], "prompt_logprobs": scored} if chat else {}
        name = f"{prefix}-{request.headers['X-Request-Id']}"
        return {"id": name, "choices": [choice], "usage": {"prompt_tokens": 2}, **found}

    def play(self, load: str = "4") -> tuple[replay.Server, list[replay.Answer]]:
        async def all_of_it() -> tuple[replay.Server, list[replay.Answer]]:
            transport = httpx.MockTransport(self.answer)
            hooks = marks.signing(KEY)
            async with httpx.AsyncClient(transport=transport, base_url="http://server", event_hooks=hooks) as http:
                server = await replay.probe(http, prompts.load())
                return server, await replay.replay(http, server, replay.LOADS[load], seed=1)

        return asyncio.run(all_of_it())


def test_canaries_are_tagged_salted_and_greedy() -> None:
    """Every request carries the header and the id prefix, a cache salt of its own, temperature 0 and one seed."""
    served = Served()
    _, answers = served.play("mixed")
    assert len(answers) == len(prompts.load().prompts)
    checker, tap = marks.Checker(), Tap()
    checker.key = KEY
    asked = checker.check([tap.request("a", mark=headers[marks.HEADER]) for headers, _ in served.asked])
    assert all(isinstance(request, wire.Request) and request.canary for request in asked)
    assert all(h["X-Request-Id"].startswith(replay.REQUEST_PREFIX) for h, _ in served.asked)
    assert len({body["cache_salt"] for _, body in served.asked}) == len(served.asked)
    canaries = [body for headers, body in served.asked if "filler" not in headers["X-Request-Id"]]
    assert {(body["temperature"], body["seed"]) for body in canaries} == {(0, 0)}


@pytest.mark.parametrize("chat", [True, False])
def test_answers_are_read_from_both_endpoints(*, chat: bool) -> None:
    """A server without a chat template gets completions, and the same is read from its answers."""
    server, answers = Served(chat=chat).play()
    assert server.canaries.endpoint == ("chat" if chat else "completions")
    first = answers[0]
    assert (first.prompt_tokens, first.output, first.output_logprob) == (2, (4, 5), (-0.5, -1.5))
    assert np.isnan(first.prompt_logprob[0])
    assert first.prompt_logprob[1] == -2
    assert first.prompt_digest > 0


def test_a_server_that_has_only_nan_is_replayed_all_the_same() -> None:
    """Log-probabilities that JSON cannot hold are asked for no more, and are not numbers."""
    _, answers = Served(numbers=False).play()
    assert not any(answer.error for answer in answers)
    assert np.isnan(answers[0].output_logprob).all()


def test_a_server_that_answers_nothing_is_refused() -> None:
    """The error says how, and quotes nothing."""

    async def ask() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(503, text="loading"))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            await replay.probe(http, prompts.load(), "tiny")

    with pytest.raises(ServerError, match="status 503, 7 bytes"):
        asyncio.run(ask())


@pytest.mark.parametrize("listed", ["[]", '{"data": null}', '{"data": [[]]}', "3"])
def test_a_list_of_models_of_another_shape_is_no_stack_trace(listed: str) -> None:
    """Whatever answers at the address, the command ends with a sentence."""

    async def ask() -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, text=listed))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            await replay.probe(http, prompts.load())

    with pytest.raises(ServerError, match="no OpenAI-compatible server answers"):
        asyncio.run(ask())


def test_an_answer_of_another_shape_is_an_error_of_that_canary() -> None:
    """Choices that are no objects do not end the round."""

    async def ask() -> list[replay.Answer]:
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"choices": ["text"], "id": "a"}))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await replay.replay(http, replay.Server("", "tiny", prompts.load()), replay.LOADS["4"], seed=1)

    assert all("AttributeError" in answer.error for answer in asyncio.run(ask()))


def test_canaries_without_a_fingerprint_have_empty_counts() -> None:
    """A missing fingerprint leaves zeros, so the prompt is not compared."""
    one = np.ones((2, 3), np.uint32)
    answers = [replay.Answer("a", 3, 1, (np.nan, -1.0), (1,), (-1.0,)), replay.Answer("b", error="HTTP 500")]
    found = assemble("1", answers, {"a": Routed(1, "r", 1, one, one)})
    assert found.prompt.sum((1, 2)).tolist() == [6, 0]
    assert found.answered.tolist() == [True, False]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(), "healthy: 40 canaries are routed as in 8 reference rounds"),
        (Fault(0.4, (2, 3), nats=0.05), "the fault is in its router or in layer 3 behind the router"),
        (Fault(nats=120), "log-probabilities changed by 102 nats a token"),
        (Fault(nats=0.3), "the fault is behind the last router"),
        (Fault(0.4, (0, 1, 2, 3), nats=0.05, loads=("1",)), "only at load 1, not at 16"),
    ],
)
def test_the_summary_says_where_the_fault_is(fault: Fault, said: str) -> None:
    """One line for a pager, with the layers numbered as in the whole model."""
    world = World()
    judged = judge(world.reference(loads=("1", "16")), world.round(fault, ("1", "16")))
    assert said in verdict_text.summary(judged, layer_ids=[1, 3, 5, 7])
    json.dumps(verdict_text.evidence(judged))


def test_a_layer_is_not_named_when_none_is_certain() -> None:
    """With few rounds all layers together may be certain and no single one: then the routers are told, not the text."""
    world = World(seed=2, noise=0.1, spread=0.2, n=60)
    judged = judge(world.reference(8), world.round(Fault(0.12, (0, 1, 2, 3))))
    said = verdict_text.summary(dataclasses.replace(judged, first_layer=None))
    assert said.startswith("routing: routers choose otherwise over all layers together (")


def test_nan_is_told_and_with_it_that_a_later_layer_may_be_at_fault() -> None:
    """Requests share the cache, and NaN goes through it to layers before the broken one."""
    world = World()
    one = world.round(Fault(0.4, (0, 1, 2, 3))).replays[0]
    broken = Round((dataclasses.replace(one, output_logprob=np.full_like(one.output_logprob, np.nan)),))
    said = verdict_text.summary(judge(world.reference(), broken))
    assert "100% of the log-probabilities are not numbers (NaN), so the fault may also be in a later layer" in said


def test_one_canary_is_and_two_are() -> None:
    """As people write it."""
    one = Judgement("healthy", compared=1, rounds=1)
    assert verdict_text.summary(one) == "healthy: 1 canary is routed as in 1 reference round"
    changed = Judgement("deployment", changed_prompts=1, prompts=40, added_tokens=1)
    assert "1 of 40 canaries is other tokens than before, +1 token each" in verdict_text.summary(changed)


def test_fingerprints_are_waited_for_as_long_as_some_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sidecar on a busy machine stores them one by one; when none has come for the whole wait, it is over."""
    now, stored = [0.0], ["a", "b", "c"]

    async def pause(_: float) -> None:
        now[0] += 15

    def fingerprints(_: object, missing: list[str]) -> dict[str, str]:
        return {name: name for name in missing if name in stored[: int(now[0] // 15)]}

    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(rounds, "asyncio", SimpleNamespace(sleep=pause, to_thread=asyncio.to_thread))
    monkeypatch.setattr(rounds.canaries, "fingerprints", fingerprints)
    assert set(asyncio.run(rounds._arrived(None, ["a", "b", "c", "never"], 20))) == set(stored)  # type: ignore[arg-type]
    assert now[0] == 75
