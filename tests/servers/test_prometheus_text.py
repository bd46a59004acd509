"""Samples are read as Prometheus would read them, and what no server may say is a ``ValueError`` alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_watch.servers.dense import DenseClient
from moe_watch.servers.prometheus_text import samples

LOAD = 'vllm:num_requests_running{engine="0",model_name="a b"}'


def running(text: str) -> float | None:
    """Return what the dense client says that a server runs which shows ``text``."""

    async def ask() -> float | None:
        answer = httpx.MockTransport(lambda _: httpx.Response(200, text=text))
        async with httpx.AsyncClient(transport=answer, base_url="http://dense") as http:
            return await DenseClient(http).running()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{LOAD} 2.0\n{LOAD} 3\n", 5.0),
        (f"{LOAD} 2.0 1700000000000\n", 2.0),
        (f"{LOAD} 2.0\nvllm:num_requests_running_by_rank 40.0\n", 2.0),
        (f"# TYPE vllm:num_requests_running gauge\n{LOAD} 2.0\nbroken {{\n", 2.0),
        (f"{LOAD} NaN\n", None),
        (f"{LOAD}\n", None),
        ("", None),
    ],
)
def test_the_requests_that_a_server_runs_are_those_of_its_own_series(text: str, told: float | None) -> None:
    """A time behind the value is no value, another metric's name may begin alike, and nan is not a number."""
    assert running(text) == told


def test_a_label_keeps_what_it_escapes() -> None:
    (one,) = samples('info{path="C:\\\\x",said="\\"a,b} 1"} 1.0\n', "info")
    assert one.labels == {"path": "C:\\x", "said": '"a,b} 1'}


@given(st.one_of(st.text(), st.text(alphabet='{}="\\, 019.eNaIf#\n')))
def test_any_text_is_read_or_refused_by_one_error(text: str) -> None:
    with suppress(ValueError):
        assert all(one.name == "load" for one in samples(f"load{text}", "load"))
