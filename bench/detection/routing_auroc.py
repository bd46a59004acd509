"""AUROC of a kNN score on the demo MoE's routing, by kind and length: ``python -m bench.detection.routing_auroc``."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from demo import corpus
from demo.evaluation import load_model
from demo.separation import separation

LENGTHS = (16, 64)


@click.command()
@click.argument("checkpoint", default="demo/models/moe", type=click.Path(exists=True, path_type=Path))
def main(checkpoint: Path) -> None:
    """Print one row per unseen kind."""
    torch.set_num_threads(1)
    model = load_model(checkpoint)
    columns = [separation(model, checkpoint, length=length, reference=100, test=50) for length in LENGTHS]
    print(f"{'unseen kind':12}" + "".join(f"{length:>6} tokens" for length in LENGTHS))
    for kind in corpus.UNSEEN:
        print(f"{kind:12}" + "".join(f"{column[kind]:13.3f}" for column in columns))


if __name__ == "__main__":
    main()
