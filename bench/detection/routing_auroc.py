"""AUROC of a kNN score on the demo MoE's routing, by kind and length: ``python bench/routing_auroc.py [DIR]``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from moe_watch.demo import corpus
from moe_watch.demo.evaluation import load_model
from moe_watch.demo.separation import separation

LENGTHS = (16, 64)


def main() -> None:
    """Print one row per unseen kind."""
    torch.set_num_threads(1)
    checkpoint = Path(sys.argv[1] if len(sys.argv) > 1 else "moe_watch/demo/models/moe")
    model = load_model(checkpoint)
    columns = [separation(model, checkpoint, length=length, reference=100, test=50) for length in LENGTHS]
    print(f"{'unseen kind':12}" + "".join(f"{length:>6} tokens" for length in LENGTHS))
    for kind in corpus.UNSEEN:
        print(f"{kind:12}" + "".join(f"{column[kind]:13.3f}" for column in columns))


if __name__ == "__main__":
    main()
