"""``moe-watch bench-servers``: from which concurrency on the MoE is faster than the dense model."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import click
import httpx
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from moe_watch.canary import marks
from moe_watch.cli import setup, tables, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.detect.quality.advantage import begins
from moe_watch.domain.amounts import plural
from moe_watch.servers.client import Hooks, ServerError, connect
from moe_watch.servers.dense import DenseClient
from moe_watch.servers.load import Level, Target, prompts, side_by_side
from moe_watch.settings import Settings
from moe_watch.store.records import shadows
from moe_watch.store.schema import ServerBench


@click.command()
@click.option("--moe", "moe_url", type=setup.ADDRESS, help="Base URL of the MoE's server; by default vllm_url.")
@click.option(
    "--dense", "dense_url", type=setup.ADDRESS, help="Base URL of the dense model's server; by default shadow.url."
)
@click.option("--concurrency", default="1,4,16,64", show_default=True, help="Numbers of requests under way at once.")
@click.option(
    "--rounds", default=4, show_default=True, type=click.IntRange(2, 50), help="Number of turns of each server."
)
@click.option(
    "--prompt-words", default=64, show_default=True, type=click.IntRange(1), help="Length of the prompts, words."
)
@click.option(
    "--max-tokens", default=64, show_default=True, type=click.IntRange(1), help="Maximum length of the answers, tokens."
)
@click.option(
    "--prompts", "file", type=click.Path(exists=True, path_type=Path), help="A file with one prompt per line."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--save/--no-save", default=True, show_default=True, help="Keep the result in the store for the report.")
def command(
    *,
    moe_url: str | None,
    dense_url: str | None,
    concurrency: str,
    rounds: int,
    prompt_words: int,
    max_tokens: int,
    file: Path | None,
    as_json: bool,
    save: bool,
) -> None:
    """Load both servers in turns, with the same prompts, and print from which concurrency on the MoE is faster.

    This is load on a production server: it is short (a few requests per level and round) but real.
    """
    settings = setup.settings(vllm_url=moe_url)
    settings.shadow.url = dense_url or settings.shadow.url
    if settings.vllm_url is None or settings.shadow.url is None:
        raise click.ClickException("two servers are needed: give --moe and --dense")
    store = open_store(settings) if save else None
    hooks = _marking(settings, store)
    texts = _texts(file) if file else prompts(prompt_words)
    levels = _levels(concurrency)
    try:
        names, found = asyncio.run(_measure(settings, levels, rounds, max_tokens, texts, hooks=hooks))
    except ServerError as error:
        raise click.ClickException(str(error)) from error
    at = time.time()
    rows = [_row(level, at, *names) for level in found]
    if store is not None:
        with Session(store, expire_on_commit=False) as session, session.begin():
            shadows.add_benches(session, rows)
    _print(rows, as_json=as_json)


def _marking(settings: Settings, store: Engine | None) -> Hooks:
    """Return what marks the load as no traffic; where there is none, say that it counts."""
    try:
        known = store if store is not None else open_store(settings)
        return marks.signing(marks.secret(settings.canary, known))
    except (click.ClickException, SQLAlchemyError):
        terminal.line("the load counts as traffic: without the store, MOE_WATCH_CANARY__SECRET is not known", err=True)
        return {}


def _texts(file: Path) -> Iterator[str]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read: {error}") from error
    if not lines:
        raise click.ClickException(f"{file} has no prompt: a line each")
    return cycle(lines)


def _levels(text: str) -> list[int]:
    try:
        levels = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,4,16") from error
    if not levels or levels[0] < 1 or levels[-1] > 1024:
        raise click.BadParameter("concurrency is between 1 and 1024")
    return levels


async def _measure(
    settings: Settings, levels: list[int], rounds: int, max_tokens: int, texts: Iterator[str], *, hooks: Hooks
) -> tuple[tuple[str, str], list[Level]]:
    """Return the names of both models and what they did."""
    async with (
        _http(settings.vllm_url or "", settings.vllm_api_key, hooks) as moe,
        _http(settings.shadow.url or "", settings.shadow.api_key) as dense,
    ):
        names = (await DenseClient(moe).served())[0], (await DenseClient(dense, settings.shadow.model).served())[0]
        found = await side_by_side(
            Target("the MoE's server", moe, names[0]),
            Target("the dense model's server", dense, names[1]),
            texts,
            levels=levels,
            rounds=rounds,
            max_tokens=max_tokens,
        )
    return names, found


def _http(url: str, key: SecretStr | None, hooks: Hooks | None = None) -> httpx.AsyncClient:
    return connect(url, key, httpx.Timeout(300, connect=5), connections=None, hooks=hooks)


def _row(level: Level, at: float, moe: str, dense: str) -> ServerBench:
    ratio = level.ratio
    return ServerBench(
        at=at,
        moe_model=moe,
        dense_model=dense,
        concurrency=level.concurrency,
        moe_tokens_per_s=statistics.fmean(turn.tokens_per_s for turn in level.moe),
        dense_tokens_per_s=statistics.fmean(turn.tokens_per_s for turn in level.dense),
        ratio=ratio.value,
        ratio_lower=ratio.lower,
        ratio_upper=ratio.upper,
        moe_ttft_s=statistics.median(turn.ttft_s for turn in level.moe),
        dense_ttft_s=statistics.median(turn.ttft_s for turn in level.dense),
        rounds=len(level.moe),
        requests=sum(turn.requests for turn in level.moe + level.dense),
    )


_COLUMNS = (
    *("concurrency", "moe_tokens_per_s", "dense_tokens_per_s", "ratio", "ratio_lower", "ratio_upper"),
    *("moe_ttft_s", "dense_ttft_s", "rounds", "requests"),
)


def _print(rows: list[ServerBench], *, as_json: bool) -> None:
    start = begins([row.concurrency for row in rows], [row.ratio for row in rows])
    if as_json:
        levels = [{name: getattr(row, name) for name in _COLUMNS} for row in rows]
        terminal.data({"levels": levels, "advantage_begins": start})
        return
    columns = ("concurrency", "MoE tok/s", "dense tok/s", "advantage", "95 % interval", "TTFT MoE / dense, s")
    cells = [
        (
            str(row.concurrency),
            f"{row.moe_tokens_per_s:.0f}",
            f"{row.dense_tokens_per_s:.0f}",
            f"{row.ratio:.2f}",
            f"{row.ratio_lower:.2f} to {row.ratio_upper:.2f}",
            f"{row.moe_ttft_s:.3f} / {row.dense_ttft_s:.3f}",
        )
        for row in rows
    ]
    tables.show(tables.Grid(columns, cells))
    terminal.line(
        f"The MoE is faster from {plural(start, 'concurrent request')} on."
        if start is not None
        else "The MoE is not faster at any concurrency measured: check expert parallelism (see docs/quality.md)."
    )
