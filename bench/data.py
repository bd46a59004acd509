"""Public data that benches read: where each file is from, under which licence, and how it is made.

    python -m bench.data list                what there is, and what is missing
    python -m bench.data make gptoss20b      fetch the recorded routing and convert it
    python -m bench.data make mixtral

Files are read from ``MOE_WATCH_BENCH_DATA``, by default ``bench/data``: prompts and expert counts lie there in the
repository, unchanged from where they were published; recorded routing is too large for it and is made by ``make``.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from numpy.typing import NDArray

from bench import ROOT

COMMITTED: Final = ROOT / "bench" / "data"
FOLDER: Final = Path(os.environ.get("MOE_WATCH_BENCH_DATA", COMMITTED))
GPTOSS_SETS: Final = (
    *("mmlu_dev", "mmlu_validation", "mmlu_test", "mmlu_pro_validation"),
    *("tulu3_persona_if", "Polyglot-or-Not_Fact-Completion"),
)
_LAYERS: Final = 24


@dataclass(frozen=True)
class Source:
    """Files of one public repository on GitHub, unchanged."""

    repository: str
    licence: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Made(Source):
    """Files that ``make`` writes from a checkout of ``commit``."""

    commit: str
    make: Callable[[Path, Path], None]


def path(name: str) -> Path:
    """Return where a file or folder lies; exit with the step that makes it where it is missing."""
    found = FOLDER / name
    if not found.exists():
        raise SystemExit(f"{found} is missing: {_step(name)}")
    return found


def _step(name: str) -> str:
    made = next((key for key, source in MADE.items() if any(file.startswith(name) for file in source.files)), None)
    if made is not None:
        return f"python -m bench.data make {made}"
    return "it is in the repository's bench/data (unset MOE_WATCH_BENCH_DATA, or copy it from there)"


def _gptoss(checkout: Path, out: Path) -> None:
    """Keep of each generation the chosen experts ``[tokens, 24, 4]`` and what it is, one file for each set."""
    for name in GPTOSS_SETS:
        files = sorted((checkout / "data" / name).glob("*/*_examples.json"), key=str)
        parts, meta = zip(*(_generation(file, checkout) for file in files), strict=True)
        offsets = np.cumsum([0, *map(len, parts)])
        np.savez_compressed(out / f"{name}.npz", experts=np.concatenate(parts), offsets=offsets)
        lines = (json.dumps(about, ensure_ascii=False) + "\n" for about in meta)
        (out / f"{name}.meta.jsonl").write_text("".join(lines), encoding="utf-8")


def _generation(file: Path, checkout: Path) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    record = json.loads(file.read_text(encoding="utf-8"))
    tokens = [next(iter(token.values())) for token in record["router_data"]]
    experts = [[token[f"layer_{layer}"]["selected_experts"] for layer in range(_LAYERS)] for token in tokens]
    about = {
        "file": str(file.relative_to(checkout)),
        "dataset": record["dataset"],
        "category": record["category"],
        "finished": record["finished_successfully"],
        "repetition": record["has_repetition"],
        "prompt": record["original_prompt"],
        "generated": "".join(record["generated_only"]),
    }
    return np.array(experts, np.uint8), about


def _mixtral(checkout: Path, out: Path) -> None:
    """Put the shares ``[prompts, 32, 8]`` of all subjects into one file, at half precision."""
    files = sorted((checkout / "frac_vecs").glob("*.npy"))
    shares = [np.load(file) for file in files]
    np.savez_compressed(
        out / "mixtral_mmlu_per_prompt_fracs.npz",
        frac=np.concatenate(shares).astype(np.float16),
        subjects=np.array([file.stem for file in files]),
        offsets=np.cumsum([0, *map(len, shares)]),
    )


MADE: Final = {
    "gptoss20b": Made(
        "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
        "Apache-2.0",
        tuple(f"routing/gptoss20b/{name}{end}" for name in GPTOSS_SETS for end in (".npz", ".meta.jsonl")),
        "72b368f60045221f21eeb65debb27d58de92e565",
        _gptoss,
    ),
    "mixtral": Made(
        "ajtejankar/mixtral-vis-moe",
        "Apache-2.0",
        ("routing/mixtral/mixtral_mmlu_per_prompt_fracs.npz",),
        "5c2f185d579721ee17d7a8111a221ee9d41c9ac8",
        _mixtral,
    ),
}
KEPT: Final = (
    Source("lm-sys/FastChat", "Apache-2.0", ("prompts/mt_bench_question.jsonl",)),
    Source("tatsu-lab/alpaca_eval", "Apache-2.0", ("prompts/alpaca_eval_instructions.jsonl",)),
    Source("yizhongw/self-instruct", "Apache-2.0", ("prompts/selfinstruct_seed_tasks.jsonl",)),
    Source("openai/human-eval", "MIT", ("prompts/HumanEval.jsonl.gz",)),
    Source("openai/grade-school-math", "MIT", ("prompts/gsm8k_test.jsonl",)),
    Source("defog-ai/sql-eval", "Apache-2.0", ("prompts/sqleval_questions_gen_postgres.csv",)),
    Source("ShishirPatil/gorilla", "Apache-2.0", ("prompts/BFCL_v4_simple_python.jsonl",)),
    Source(
        "google-research/url-nlp", "CC-BY-4.0", tuple(f"prompts/mgsm_{tongue}.tsv" for tongue in ("de", "ja", "ru"))
    ),
    Source("suzgunmirac/BIG-Bench-Hard", "MIT", ("prompts/bbh_dyck_languages.json", "prompts/bbh_word_sorting.json")),
    Source("paul-rottger/exaggerated-safety", "CC-BY-4.0", ("prompts/xstest_prompts.csv",)),
    Source(
        "allenai/OLMoE",
        "Apache-2.0",
        ("routing/olmoe/expert_counts_olmoe_base.json", "routing/olmoe/expert_counts_olmoe_sft.json"),
    ),
)


@click.group()
def main() -> None:
    """Show or make the public data that benches read."""


@main.command("list")
def list_() -> None:
    """Print each file with its origin, its licence, and the step that makes it where it is missing."""
    for line in listed():
        click.echo(line)


def listed() -> Iterator[str]:
    """Return a line for each file."""
    for source in (*KEPT, *MADE.values()):
        for file in source.files:
            state = "there" if (FOLDER / file).exists() else f"missing: {_step(file)}"
            yield f"{file}  {source.repository}  {source.licence}  {state}"


@main.command("make")
@click.argument("name", type=click.Choice(list(MADE)))
@click.option("--clone", help="A clone of the repository, instead of the one at GitHub.")
def make(name: str, clone: str | None) -> None:
    """Fetch one repository with git and convert what benches read of it."""
    source = MADE[name]
    out = (FOLDER / source.files[0]).parent
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        address = clone or f"https://github.com/{source.repository}"
        for command in (
            ["init", "--quiet"],
            ["fetch", "--quiet", "--depth", "1", address, source.commit],
            ["checkout", "--quiet", "FETCH_HEAD"],
        ):
            subprocess.run(["git", "-C", folder, *command], check=True)
        source.make(Path(folder), out)
    click.echo(f"made {out}")


if __name__ == "__main__":
    main()
