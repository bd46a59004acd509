"""Trains the scorecard's second model: another family, another shape, never used to choose a tolerance.

``python -m faults.second --out DIR`` from ``bench``; six to eight minutes on one core. Qwen3-MoE adds the experts'
output to the residual without a norm behind it, which Gemma 4 has, so it feels faults of weights that Gemma 4 cannot.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import demo
from demo.packing import IGNORED, training_rows
from demo.tokenizer import VOCABULARY

STEPS, WARM_UP, PEAK_RATE, BALANCE = 360, 40, 4e-3, 0.02
TOKENIZER = Path(next(iter(demo.__path__))) / "models" / "moe"


def new_model(seed: int) -> Qwen3MoeForCausalLM:
    """Return the model with random weights: 5 layers of 24 experts, top-2, no shared expert."""
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=24,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=False,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=[1, 5],
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")  # the default is far slower on a CPU
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            torch.nn.init.normal_(parameter, std=128**-0.5)  # decided from the start: logits of unit variance
    return model


def train(seed: int, steps: int) -> tuple[Qwen3MoeForCausalLM, list[dict[str, float]]]:
    """Train from scratch on the demo's corpus; return the model and its losses every 40 steps."""
    model = new_model(seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    warm_up = LinearLR(optimizer, 0.01, total_iters=WARM_UP)
    decay = CosineAnnealingLR(optimizer, max(1, steps - WARM_UP), eta_min=PEAK_RATE / 50)
    schedule = SequentialLR(optimizer, [warm_up, decay], [WARM_UP])
    history, started = [], time.monotonic()
    batches = training_rows(Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")), unseen=False, seed=seed)
    for step in range(1, steps + 1):
        rows = next(batches)
        out = model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False, output_router_logits=True)
        targets = rows.ids.masked_fill(rows.positions == 0, IGNORED)[:, 1:].flatten()
        loss = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED)
        optimizer.zero_grad()
        (loss + BALANCE * out.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 40 == 0:
            history.append({"step": step, "loss": round(loss.item(), 4), "balance": round(out.aux_loss.item(), 4)})
            click.echo(f"{json.dumps(history[-1])} {time.monotonic() - started:.0f} s")
    return model.eval(), history


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint.")
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(out: Path, steps: int, seed: int) -> None:
    """Train it and write its checkpoint."""
    torch.set_num_threads(1)
    model, history = train(seed, steps)
    model.to(torch.bfloat16).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, out / name)
    (out / "training_log.json").write_text(json.dumps({"seed": seed, "steps": steps, "history": history}) + "\n")


if __name__ == "__main__":
    main()
