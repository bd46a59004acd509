"""What is left of the shadow where the dense model is served by TGI or Ollama, and what is said of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from moe_watch.report.build.from_shadow import section
from moe_watch.report.data.sections import Quality
from moe_watch.report.data.types import Period
from moe_watch.report.say import captions, summary
from moe_watch.servers import load
from moe_watch.servers.client import RefusedError
from moe_watch.servers.dense import DenseClient
from moe_watch.settings import Settings, ShadowSettings
from moe_watch.shadow.judge import Judge
from moe_watch.shadow.worker import Worker
from moe_watch.store.records import shadows
from moe_watch.store.records.shadows import Pending
from moe_watch.store.schema import Model
from tests.support import shadow_store
from tests.support.dense import REQUEST, replayed, use
from tests.support.fake_openai import LIKELY, UNLIKELY, FakeOpenAI
from tests.support.other_servers import FakeOllama, FakeTGI
from tests.support.reviews import quiet

Make = Callable[[], FakeOpenAI]
BOTH = pytest.mark.parametrize("server", [FakeTGI, FakeOllama])

COMPLETION = replace(REQUEST, endpoint="/v1/completions", prompt="alphabet")


@BOTH
def test_the_first_thing_that_is_lacking_is_named(server: Make) -> None:
    """TGI's own /tokenize takes another body and Ollama has none: both lack vLLM's, and no context length is told."""
    found = use(server(), lambda client: client.probe())
    assert (found.model, found.scores, found.lacks, found.max_model_len) == ("dense", False, "/tokenize", None)


@BOTH
@pytest.mark.parametrize("request_", [REQUEST, COMPLETION])
def test_defects_latency_and_lengths_are_left(server: Make, request_: Pending) -> None:
    """No likelihood of the MoE's output, no first choices, no agreement, no concurrency; all else is there."""
    row = replayed(server(), request_).row
    assert row.outcome == "unscored"
    assert (row.nll_moe_output, row.top1, row.agreement, row.dense_concurrency) == (None, None, None, None)
    assert row.defects == {"moe": [], "dense": []}
    assert row.dense_tokens in {8, 9}  # TGI counts the end-of-turn token
    assert row.dense_ttft_s is not None
    assert row.dense_tpot_s is not None


@pytest.mark.parametrize(
    ("server", "chat"),
    [(FakeTGI(), -LIKELY), (FakeOllama(), -UNLIKELY), (FakeOllama(lacks=frozenset({"logprobs"})), None)],
    ids=["tgi", "ollama", "ollama before logprobs"],
)
def test_the_dense_models_own_likelihood_is_kept_of_chats(server: FakeOpenAI, chat: float | None) -> None:
    """Without the end-of-turn token, which TGI sends with the others; plain completions come without any."""
    assert replayed(server).row.nll_dense_output == chat
    assert replayed(server, COMPLETION).row.nll_dense_output is None


def test_json_mode_is_refused_by_tgi_and_passed_on_to_ollama() -> None:
    """TGI wants a schema with it: the request counts as unsupported, and the server as well."""
    asked = replace(REQUEST, params={"response_format": "json_object"})
    with pytest.raises(RefusedError, match="422"):
        replayed(FakeTGI(), asked)
    ollama = FakeOllama(answers={"alphabet": "{}"})
    assert replayed(ollama, asked).row.defects == {"moe": ["json"], "dense": []}
    assert ollama.asked[-1][1]["response_format"] == {"type": "json_object"}


@BOTH
def test_the_load_of_both_servers_works(server: Make) -> None:
    """Tokens are counted by the usage that both send at the end of a stream."""

    async def run() -> load.Turn:
        async with server().client() as http:
            return await load.load(load.Target("dense", http, "dense"), ["one", "two"], 2, 16)

    turn = asyncio.run(run())
    assert turn.requests == 2
    assert turn.tokens_per_s > 0


@BOTH
def test_a_report_says_why_there_is_no_gap(tmp_path: Path, server: Make) -> None:
    """The rows are written, and the report names the server that cannot score instead of calling it silent."""
    store = shadow_store.make(tmp_path)
    with Session(store) as session, session.begin():
        for pk in range(1, 5):
            shadow_store.add_sample(session, pk)

    async def run() -> None:
        given = Settings(shadow=ShadowSettings(requests_per_s=1e6, tokens_per_s=1e9, base_rate=1.0))
        async with server().client() as http:
            worker = Worker(given, store, DenseClient(http), None)
            task = asyncio.create_task(worker.run())
            while len(shadow_store.rows(store)) < 4:  # noqa: ASYNC110 - a store has no event
                await asyncio.sleep(0.02)
            task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert {row.outcome for row in shadow_store.rows(store).values()} == {"unscored"}
    with Session(store) as session:
        row = session.query(Model).one()
        found = section(session, row, Period(0, 1e12), Period(-1e12, 0), 0.02)  # type: ignore[arg-type]
        assert shadows.dense_model(session, "moe", "r0") is None
    assert isinstance(found, Quality)
    why = "the server of dense does not say how likely a text is"
    assert why in summary.quality(replace(quiet(), quality=found)).sentences[0]
    assert why in captions.leads(replace(quiet(), quality=found))["quality"]
    assert (
        "no dense model answered" in captions.leads(replace(quiet(), quality=replace(found, dense_model="")))["quality"]
    )


@BOTH
def test_a_judge_may_be_served_by_them(server: Make) -> None:
    """It is asked on the chat route alone, and needs nothing but an answer."""

    async def ask(client: DenseClient) -> float:
        return await Judge(client.http, (await client.served())[0]).prefers_first("question", "one", "two")

    judge = server()
    judge.verdicts = ["A", "B"]
    assert use(judge, ask) == 1
