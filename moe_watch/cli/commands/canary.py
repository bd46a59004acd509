"""``moe-watch canary``: replay a fixed set of prompts, to distinguish a change of the model from one of the traffic."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from sqlalchemy import Engine

from moe_watch.canary import marks, prompts, reference, replay
from moe_watch.canary.check import Checked, NotChecked, check, loads_by_name, record, save_reference
from moe_watch.canary.rounds import Played
from moe_watch.cli import setup, tables, terminal
from moe_watch.cli.open_store import open_store
from moe_watch.cli.screen import Screen
from moe_watch.detect.canary.comparison import FAULTS, FEWEST_ROUNDS
from moe_watch.detect.canary.expert_coverage import LEAST, unreached
from moe_watch.detect.canary.replay import Round
from moe_watch.domain.amounts import plural, significant
from moe_watch.domain.sanitise import one_line
from moe_watch.servers.client import ServerError
from moe_watch.settings import Settings
from moe_watch.store.records import canaries
from moe_watch.store.schema import CanaryRun

_url = click.option("--url", type=setup.ADDRESS, help="Base URL of vLLM; by default vllm_url of the settings.")
_prompts = click.option(
    "--prompts", "path", type=click.Path(path_type=Path), help="JSON lines of prompts; by default the included set."
)
_loads = click.option("--loads", help="Batch compositions, comma-separated: 1, 4, 16, mixed.")
_FAILURES = (NotChecked, ServerError, prompts.BadCanarySet, reference.NoReference)


@click.group()
def command() -> None:
    """Replay canary prompts: record the reference, check against it, list the checks."""


@command.command("record")
@_url
@_prompts
@_loads
@click.option(
    "--rounds", default=8, show_default=True, type=click.IntRange(FEWEST_ROUNDS, 100), help="Healthy rounds to replay."
)
@click.option(
    "--add", is_flag=True, help="Add the rounds to the reference, for example after a restart, instead of replacing it."
)
@click.option("--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), help="Weights for --engine transformers.")
@click.option("--model", help="Name under which vLLM serves the model, for --engine transformers.")
def record_(
    *,
    url: str | None,
    path: Path | None,
    loads: str | None,
    rounds: int,
    engine: str,
    checkpoint: Path | None,
    model: str | None,
    add: bool,
) -> None:
    """Record the routing of the canaries as the reference, while the deployment is known to be good."""
    settings = _settings(url, path, loads)
    store = open_store(settings)
    try:
        if engine == "transformers":
            _record_transformers(settings, store, checkpoint, model)
        else:
            for said in asyncio.run(_record(settings, store, rounds, add=add)):
                terminal.line(said)
    except _FAILURES as error:
        raise click.ClickException(str(error)) from error


def _settings(url: str | None, path: Path | None, loads: str | None) -> Settings:
    settings = setup.settings(vllm_url=url)
    if path is not None:
        settings.canary.prompts = path
    if loads is not None:
        settings.canary.loads = tuple(name.strip() for name in loads.split(","))
    return settings


def _address(settings: Settings) -> str:
    if settings.vllm_url is None:
        raise NotChecked("the address of vLLM is not set: --url, or MOE_WATCH_VLLM_URL")
    return settings.vllm_url


async def _record(settings: Settings, store: Engine, rounds: int, *, add: bool) -> list[str]:
    wanted, loads = prompts.load(settings.canary.prompts), loads_by_name(settings.canary.loads)
    console = Screen(stderr=True)
    with console.status("") as status:
        done: list[Played] = []

        def show(played: Played | None = None) -> None:
            done.extend([played] if played is not None else [])
            status.update(f"Round {len(done) + 1} of {rounds}: {len(wanted.prompts)} canaries at loads {names} …")

        names = ", ".join(load.name for load in loads)
        show()
        key = marks.secret(settings.canary, store)
        async with replay.client(_address(settings), settings.vllm_api_key, key) as http:
            server = await replay.probe(http, wanted)
            total = await record(http, server, loads, store, rounds=rounds, add=add, on_round=show)
    scored = "" if server.prompt_logprobs else "; without log-probabilities of the prompts, which the server refuses"
    known = await asyncio.to_thread(canaries.references, store, server.model, server.canaries.version)
    recorded = (
        f"recorded {plural(rounds, 'round')} of {len(wanted.prompts)} canaries ({server.canaries.endpoint}, set "
        f"{server.canaries.version}) of {server.model}; the reference has {plural(total, 'round')} now{scored}"
    )
    return [recorded, *_reach(known)]


def _reach(reference: list[Round]) -> list[str]:
    """Return how many experts the prompts hardly reach, since canaries cannot see a fault of these."""
    few = unreached(reference)
    if not few.any():
        return []
    get = "gets" if few.sum() == 1 else "get"
    said = (
        f"{few.sum()} of {few.size} experts {get} less than {LEAST:.1%} of the layer's choices: a fault of these "
        "alone would not be seen; prompts that are more like your traffic reach more of them (--prompts)"
    )
    return [said]


def _record_transformers(settings: Settings, store: Engine, checkpoint: Path | None, model: str | None) -> None:
    if checkpoint is None or model is None:
        raise NotChecked("--engine transformers needs --checkpoint with the weights and --model with the served name")
    wanted = prompts.load(settings.canary.prompts)
    if not reference.has_chat_template(checkpoint):
        wanted = prompts.load(settings.canary.prompts, "completions")
    with Screen(stderr=True).status("Four passes of transformers, in two precisions and two attentions …"):
        rounds = reference.rounds(checkpoint, wanted)
    save_reference(store, model, wanted.version, rounds, time.time())
    recorded = f"recorded {plural(len(rounds), 'round')} of {len(wanted.prompts)} canaries"
    terminal.line(f"{recorded} by transformers (set {wanted.version})")


@command.command("run")
@_url
@_prompts
@_loads
@click.option(
    "--against", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True, help="Which reference."
)
def run_(url: str | None, path: Path | None, loads: str | None, against: str) -> None:
    """Replay the canaries once and print the verdict; exit code 2 for a changed model or deployment, and for blind."""
    settings = _settings(url, path, loads)
    store = open_store(settings)
    try:
        with Screen(stderr=True).status("Replaying the canaries …"):
            done = asyncio.run(_run(settings, store, against))
    except _FAILURES as error:
        raise click.ClickException(str(error)) from error
    terminal.line(done.run.summary)
    if done.judgement.verdict in FAULTS | {"blind"}:
        raise SystemExit(2)


async def _run(settings: Settings, store: Engine, against: str) -> Checked:
    wanted, loads = prompts.load(settings.canary.prompts), loads_by_name(settings.canary.loads)
    key = marks.secret(settings.canary, store)
    async with replay.client(_address(settings), settings.vllm_api_key, key) as http:
        server = await replay.probe(http, wanted)
        return await check(http, server, store, loads=loads, error=settings.canary.error, against=against)


@command.command("list")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000))
@click.option("--all", "everything", is_flag=True, help="List the rounds of the reference as well.")
def list_(limit: int, *, everything: bool) -> None:
    """List the checks, newest first, with the largest shift of each load over the bound of chance: above 1 it moved."""
    store = open_store(setup.settings())
    columns, rows = ("at", "replica", "engine", "set", "verdict", "by load", "what was found"), []
    verdicts = None if everything else canaries.CHECKED
    for run in canaries.runs(store, verdicts=verdicts, limit=limit):
        at = f"{datetime.fromtimestamp(run.at, UTC):%Y-%m-%d %H:%M:%S}"
        verdict = run.verdict or ("reference" if run.reference else "earlier reference")
        cells = (at, run.replica, run.engine, run.set_version[:8], verdict, _by_load(run), run.summary)
        rows.append([one_line(cell, 1000) for cell in cells])
    tables.show(tables.Grid(columns, rows) if rows else "no canary was checked yet: moe-watch canary run")


def _by_load(run: CanaryRun) -> str:
    """Return the shift of each batch composition over the bound of chance: "1: 3.2, 16: 0.40"."""
    return ", ".join(f"{load}: {significant(ratio)}" for load, ratio in (run.evidence.get("by_load") or {}).items())
