"""gpt-oss-20b answering MMLU: degenerate output, unseen subjects and other sets of questions, from routing alone.

The recording's flag ``repetition`` means two things. Of answers that were cut off at 512 tokens it marks those that
turn in circles; of finished ones it marks short answers whose last line says again what the line before said. By their
text the first repeat themselves and the second do not (``repeated``), so both are reported and only the first is what
"degenerate" means. Baselines hold the answers that were not flagged, of other subjects than the tested ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench import data
from bench.detection.parts.separation import Counts, apart, judge, mean
from bench.detection.traffic.real import GPTOSS

LAYERS, EXPERTS, TOP_K = 24, 32, 4
FOLDS: Final = 5
SPLITS: Final = 5  # draws of the folds and of the baselines, of which the mean is reported
FEWEST: Final = 100  # requests of a baseline: there are 250
PIECE: Final = 64  # tokens
WORDS: Final = 4  # in a row, to find what a text repeats
CIRCLES: Final = 0.5  # share of repeated words in a row from which a text turns in circles


@dataclass(frozen=True)
class Answers:
    """n recorded answers; counts ``[n, layers, experts]`` by what of the answer they are of."""

    counts: dict[str, Counts]
    subject: NDArray[np.str_]
    mmlu: NDArray[np.bool_]
    flagged: NDArray[np.bool_]
    finished: NDArray[np.bool_]
    repeated: NDArray[np.float64]  # share of the text's words in a row that it has already had


def run(seed: int) -> dict[str, Any]:
    """Return AUROC and FPR of each comparison."""
    answers = _answers()
    normal, flagged, cut = answers.mmlu & ~answers.flagged, answers.mmlu & answers.flagged, ~answers.finished
    circles = answers.mmlu & (answers.repeated >= CIRCLES)
    pairs = {
        "flagged, cut off / normal": (flagged & cut, normal),
        "flagged, cut off / normal, cut off": (flagged & cut, normal & cut),
        "in circles by its text / normal, not in circles": (circles, normal & ~circles),
        "flagged, finished / normal, finished": (flagged & ~cut, normal & ~cut),
        "flagged / normal": (flagged, normal),
    }
    drawn = [_scores(answers, seed + i) for i in range(SPLITS)]
    found: dict[str, Any] = {"requests": int(normal.sum() * (FOLDS - 1) / FOLDS), "splits": SPLITS, "pairs": {}}
    for name, (these, those) in pairs.items():
        parts = {part: mean([apart(s[part][those], s[part][these]) for s in drawn]) for part in answers.counts}
        medians = [round(float(np.median(answers.repeated[side])), 3) for side in (these, those)]
        found["pairs"][name] = {"parts": parts, "repeated": medians}
    found["other sets"] = mean([apart(s["whole"][normal], s["whole"][~answers.mmlu]) for s in drawn])
    found["subjects"] = mean([_subjects(answers, seed + i) for i in range(SPLITS)])
    return found


def _answers() -> Answers:
    counts: dict[str, list[Counts]] = {"whole": [], "first 64": [], "last 64": []}
    meta: list[dict[str, Any]] = []
    for path in sorted(data.path(GPTOSS).glob("*.npz")):
        meta += [json.loads(line) for line in path.with_suffix(".meta.jsonl").read_text().splitlines()]
        with np.load(path) as arrays:
            experts, offsets = arrays["experts"], arrays["offsets"]
        for start, end in pairwise(offsets):
            answer = experts[start:end]
            for part, tokens in (("whole", answer), ("first 64", answer[:PIECE]), ("last 64", answer[-PIECE:])):
                counts[part].append(_counted(tokens))
    flags = {name: np.array([str(about[name]) == "True" for about in meta]) for name in ("repetition", "finished")}
    return Answers(
        {part: np.stack(rows) for part, rows in counts.items()},
        np.array([about["category"] for about in meta]),
        np.array([about["dataset"].startswith("mmlu") for about in meta]),
        flags["repetition"],
        flags["finished"],
        np.array([_repeated(about["generated"]) for about in meta]),
    )


def _counted(tokens: NDArray[np.uint8]) -> Counts:
    """Return counts ``[layers, experts]`` of ``tokens [n, layers, top_k]``; 255 is no expert."""
    at = tokens.astype(np.int64) + EXPERTS * np.arange(LAYERS)[:, None]
    return np.bincount(at[tokens != 255], minlength=LAYERS * EXPERTS).reshape(LAYERS, EXPERTS)


def _repeated(text: str) -> float:
    words = text.split()
    rows = [tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)]
    return 1 - len(set(rows)) / max(len(rows), 1)


def _folds(answers: Answers, seed: int) -> NDArray[np.int64]:
    """Return the fold of each answer: that of its subject, or the first for other sets."""
    subjects = np.unique(answers.subject[answers.mmlu])
    order = np.random.default_rng(seed).permutation(len(subjects)) % FOLDS
    at = np.minimum(np.searchsorted(subjects, answers.subject), len(subjects) - 1)
    return np.where(answers.mmlu, order[at], 0)


def _scores(answers: Answers, seed: int) -> dict[str, NDArray[np.float64]]:
    """Return the score of each part of each answer, against whole answers of other subjects."""
    fold = _folds(answers, seed)
    found = {part: np.zeros(len(fold)) for part in answers.counts}
    for each in range(FOLDS):
        fitted = np.flatnonzero(answers.mmlu & ~answers.flagged & (fold != each))
        order = np.random.default_rng([seed, each]).permutation(fitted)
        judged = judge(answers.counts["whole"][order], TOP_K, FEWEST)
        for part, scores in found.items():
            scores[fold == each] = judged(answers.counts[part][fold == each]).score
    return found


def _subjects(answers: Answers, seed: int) -> dict[str, Any]:
    """Return how unseen subjects are told from other answers of the seen ones, over all folds together."""
    fold, rng = _folds(answers, seed), np.random.default_rng(seed)
    usual = answers.mmlu & ~answers.flagged
    normal, unseen = [], []
    for each in range(FOLDS):
        known = rng.permutation(np.flatnonzero(usual & (fold != each)))
        cut = len(known) // 5
        judged = judge(answers.counts["whole"][known[cut:]], TOP_K, FEWEST)
        normal.append(judged(answers.counts["whole"][known[:cut]]).score)
        unseen.append(judged(answers.counts["whole"][usual & (fold == each)]).score)
    return apart(np.concatenate(normal), np.concatenate(unseen))
