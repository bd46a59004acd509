"""Every bench is found, imports, answers --help, and reads nothing from outside the repository."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import data

pytest.importorskip("vllm", reason="benches run with what the demo installs: make setup")

ROOT = Path(__file__).parents[1]
README = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
FILES = sorted((ROOT / "bench").rglob("*.py"))
# Scripts for other libraries, which have environments of their own, and what runs inside vLLM.
ELSEWHERE = re.compile(r"\.peers\.\w+_$|\.faults\.(worker|noise)$")
OUTSIDE = re.compile(
    r"""\.\./|["'`]\.\.["'`]|["'`]/(home|work|tmp|root|mnt|opt|srv|usr|var|data)\b|\(__file__\)|parents\[|shared/data"""
)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name: path.read_text("utf-8") for path in FILES if not ELSEWHERE.search(name := _module(path))}
BENCHES = [name for name, code in MODULES.items() if '__name__ == "__main__"' in code]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what a bench would set for good as it is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_from_the_root_of_the_repository(name: str) -> None:
    """What it needs of the package, of the tests and of other benches is there."""
    importlib.import_module(name)


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_answers_help_and_has_its_line_in_the_readme(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asking what a bench does never starts it."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out.lower()
    assert f"python -m {name}" in README


def test_every_bench_that_the_documents_name_is_there() -> None:
    """A reader can run the command beside each table."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]
    text = "".join(page.read_text("utf-8") for page in pages if page.name != "CHANGELOG.md")
    named = set(re.findall(r"python -m (bench[\w.]*\w)", text))
    assert named == set(BENCHES)
    assert [path for path in re.findall(r"`(bench/[\w./]+\.(?:py|json))`", text) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("path", FILES, ids=_module)
def test_no_bench_names_a_path_outside_the_repository(path: Path) -> None:
    """Only bench/__init__.py finds the root; everything else is below it, or where a variable says."""
    found = OUTSIDE.search(path.read_text("utf-8"))
    assert path == ROOT / "bench" / "__init__.py" or found is None, found


def test_the_data_in_the_repository_is_what_is_listed_with_its_origin_and_licence() -> None:
    """No file lacks its source, no source its licence, and the README says both."""
    committed = {str(path.relative_to(data.COMMITTED)) for path in data.COMMITTED.rglob("*") if path.is_file()}
    made = {file for source in data.MADE.values() for file in source.files}
    kept = {file for source in data.KEPT for file in source.files}
    licences = {f"licences/{source.repository.replace('/', '+')}.LICENSE" for source in data.KEPT}
    assert committed - made == kept | licences
    for source in (*data.KEPT, *data.MADE.values()):
        assert re.search(rf"{source.repository} \| {source.licence} \|", README)
    assert [file for file in kept if Path(file).name.removeprefix("expert_counts_olmoe") not in README] == []


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("routing/gptoss20b", "python -m bench.data make gptoss20b"),
        ("routing/mixtral/mixtral_mmlu_per_prompt_fracs.npz", "python -m bench.data make mixtral"),
        ("prompts/gsm8k_test.jsonl", "bench/data"),
    ],
)
def test_missing_data_ends_a_bench_with_the_step_that_makes_it(
    name: str, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SystemExit with a text is exit code 1."""
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    with pytest.raises(SystemExit, match=step):
        data.path(name)


@pytest.mark.parametrize("part", ["ood", "false_alarms"])
def test_a_bench_without_its_data_ends_before_it_measures_anything(
    part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It used to leave the rows out."""
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    module = importlib.import_module(f"bench.detection.parts.{part}")
    with pytest.raises(SystemExit, match=r"bench\.data make"):
        module.run({}, lambda _: pytest.fail("it measured"), seed=0)


def test_recorded_generations_become_one_file_for_each_set(tmp_path: Path) -> None:
    """Experts of all tokens in a row, where each generation begins, and what it is."""
    layers = {f"layer_{layer}": {"selected_experts": [layer, 1, 2, 3]} for layer in range(24)}
    record = {
        "dataset": "set",
        "category": "c",
        "finished_successfully": True,
        "has_repetition": False,
        "original_prompt": "2+2?",
        "generated_only": ["4", "."],
        "router_data": [{"token_7": layers}, {"token_8": layers}],
    }
    for name in data.GPTOSS_SETS:
        folder = tmp_path / "data" / name / "c"
        folder.mkdir(parents=True)
        for flags in ("True_False", "True_True"):
            (folder / f"{flags}_examples.json").write_text(json.dumps(record))
    data.MADE["gptoss20b"].make(tmp_path, tmp_path)
    with np.load(tmp_path / "mmlu_test.npz") as arrays:
        assert arrays["experts"].shape == (4, 24, 4)
        assert arrays["experts"][0, :, 0].tolist() == list(range(24))
        assert arrays["offsets"].tolist() == [0, 2, 4]
    meta = [json.loads(line) for line in (tmp_path / "mmlu_test.meta.jsonl").read_text().splitlines()]
    assert [about["generated"] for about in meta] == ["4.", "4."]
    assert meta[0]["file"] == "data/mmlu_test/c/True_False_examples.json"


def test_shares_of_all_subjects_become_one_file(tmp_path: Path) -> None:
    """Subjects in the order of their names, and where each begins."""
    (tmp_path / "frac_vecs").mkdir()
    for name, prompts in (("b", 2), ("a", 1)):
        np.save(tmp_path / "frac_vecs" / f"{name}.npy", np.full((prompts, 32, 8), 1 / 8, np.float32))
    data.MADE["mixtral"].make(tmp_path, tmp_path)
    with np.load(tmp_path / "mixtral_mmlu_per_prompt_fracs.npz") as arrays:
        assert arrays["subjects"].tolist() == ["a", "b"]
        assert arrays["offsets"].tolist() == [0, 1, 3]
        assert arrays["frac"].shape == (3, 32, 8)
