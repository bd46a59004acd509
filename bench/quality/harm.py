"""What rotated experts cost the demo's MoE on held-out texts: the harm that a quality signal could see at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from demo import corpus, evaluation
from demo.faults import rotate_experts

LAYERS = {0: "first", 2: "third", 5: "last"}


def measure(models: Path, work: Path) -> dict[str, Any]:
    """Return the mean loss over normal domains, nats per token, of the healthy MoE and with each layer rotated."""
    texts = {domain: evaluation.load_texts(models)[domain] for domain in corpus.NORMAL}
    healthy = evaluation.losses(models / "moe", texts)
    found: dict[str, Any] = {"healthy": float(np.mean(list(healthy.values())))}
    for layer, name in LAYERS.items():
        broken = evaluation.losses(rotate_experts(models / "moe", work / "rotated", layer), texts)
        shutil.rmtree(work / "rotated")
        rises = np.array([broken[domain] - healthy[domain] for domain in texts])
        found[name] = {"rise": float(rises.mean()), "most": float(rises.max())}
    return found


def table(found: dict[str, Any]) -> str:
    """Return the table of the document."""
    lines = ["| experts rotated by one in | loss on normal held-out texts rises by | in the worst domain |"]
    lines += ["| --- | --- | --- |"]
    for name in LAYERS.values():
        lines.append(f"| the {name} layer | {found[name]['rise']:+.3f} nats per token | {found[name]['most']:+.3f} |")
    return "\n".join(lines) + "\n"


def keep(models: Path, out: Path) -> None:
    """Measure and write ``out``."""
    out.write_text(json.dumps(measure(models, out.parent), indent=1))
