"""The side-by-side load, over fake servers."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy.orm import Session

from moe_watch.cli.commands import bench_servers
from moe_watch.servers import load
from moe_watch.servers.client import ServerError
from moe_watch.servers.load import Target
from moe_watch.store.records import shadows
from tests.support import shadow_store
from tests.support.fake_openai import FakeOpenAI


def side_by_side(moe: FakeOpenAI, dense: FakeOpenAI, **how: int) -> list[load.Level]:
    async def run() -> list[load.Level]:
        async with moe.client() as one, dense.client() as other:
            targets = Target("moe", one, "m"), Target("dense", other, "d")
            return await load.side_by_side(*targets, load.prompts(8), levels=(1, 4), rounds=3, **how)

    return asyncio.run(run())


def test_both_get_the_same_prompts_at_each_level() -> None:
    """Same prompts for both, in turns, none twice, and tokens are counted as the servers say."""
    moe, dense = FakeOpenAI(), FakeOpenAI()
    found = side_by_side(moe, dense, max_tokens=5)
    asked = [[body["messages"][0]["content"] for _, body in server.asked] for server in (moe, dense)]
    assert sorted(asked[0]) == sorted(asked[1])
    assert len(set(asked[0])) == len(asked[0]) == 2 * 4 * 8
    assert [level.concurrency for level in found] == [1, 4]
    assert all(len(level.moe) == len(level.dense) == 3 for level in found)
    assert all(turn.tokens_per_s > 0 and turn.ttft_s > 0 for level in found for turn in level.moe)


def test_prompts_begin_differently() -> None:
    """No two prompts share more than their first word: a prefix cache cannot help."""
    texts = list(itertools.islice(load.prompts(20), 50))
    assert len({text.split(":")[0] for text in texts}) == 50


def test_a_failing_server_is_named() -> None:
    """The error says which of the two failed."""
    with pytest.raises(ServerError, match=r"dense failed under load: .*503"):
        side_by_side(FakeOpenAI(), FakeOpenAI(fail=1000))


def test_a_server_that_does_not_count_is_said_so() -> None:
    """Without usage in the stream there is no tokens per second."""
    with pytest.raises(ServerError, match="says nothing of the tokens"):
        side_by_side(FakeOpenAI(lacks=frozenset({"usage"})), FakeOpenAI())


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command reach fake servers whatever the URL."""
    monkeypatch.setattr(bench_servers, "_http", lambda *_: FakeOpenAI().client())


@pytest.mark.usefixtures("servers")
def test_command_prints_and_keeps_the_result(tmp_path: Path) -> None:
    """JSON on request, a row per concurrency in the store, and the concurrency from which the MoE is faster."""
    store = shadow_store.make(tmp_path)
    flags = ["--moe", "http://a", "--dense", "http://b", "--concurrency", "1,2", "--rounds", "2", "--json"]
    url = store.url.render_as_string(hide_password=False)
    done = CliRunner().invoke(bench_servers.command, flags, env={"MOE_WATCH_STORE__URL": url})
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [level["concurrency"] for level in printed["levels"]] == [1, 2]
    with Session(store) as session:
        rows = shadows.benches(session, 0, 1e12, model="dense")
    assert [(row.concurrency, row.rounds) for row in rows] == [(1, 2), (2, 2)]
    assert all(row.ratio_lower <= row.ratio <= row.ratio_upper for row in rows)


@pytest.mark.usefixtures("servers")
def test_command_has_a_table_for_people() -> None:
    """Without --json it is a table and a sentence."""
    flags = ["--moe", "http://a", "--dense", "http://b", "--concurrency", "1", "--rounds", "2", "--no-save"]
    done = CliRunner().invoke(bench_servers.command, flags)
    assert "advantage" in done.output
    assert "The MoE is" in done.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--no-save"], "give --moe and --dense"),
        (["--moe", "http://a", "--dense", "http://b", "--concurrency", "x"], "list of numbers"),
    ],
)
def test_command_says_what_to_do(flags: list[str], said: str) -> None:
    """Missing servers and bad numbers end with a sentence, not a traceback."""
    done = CliRunner().invoke(bench_servers.command, [*flags, "--no-save"])
    assert done.exit_code != 0
    assert said in done.output


@pytest.mark.parametrize("text", [b"", b"\n \n", b"\xff\xfe"])
def test_a_file_without_prompts_is_said_so(tmp_path: Path, text: bytes) -> None:
    """Nothing to send is no stack trace."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(text)
    flags = ["--moe", "http://a", "--dense", "http://b", "--no-save", "--prompts", str(file)]
    done = CliRunner().invoke(bench_servers.command, flags)
    assert done.exit_code == 1
    assert "prompts.txt" in done.output


def test_a_server_that_refuses_us_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that it does not know is no stack trace either."""
    monkeypatch.setattr(bench_servers, "_http", lambda *_: FakeOpenAI(refuses=True).client())
    done = CliRunner().invoke(bench_servers.command, ["--moe", "http://a", "--dense", "http://b", "--no-save"])
    assert done.exit_code == 1
    assert "401" in done.output


def test_client_of_the_command_takes_both_forms_of_url() -> None:
    """A base URL with or without /v1 is the same server."""
    urls = {str(bench_servers._http(url, None).base_url) for url in ("http://a:1", "http://a:1/v1", "http://a:1/v1/")}
    assert urls == {str(httpx.URL("http://a:1"))}
