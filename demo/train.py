"""Train a tiny model of the Gemma-4 architecture: ``python -m demo.train moe|dense --out DIR``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

from demo import evaluation, tokenizer
from demo.packing import LENGTH, ROWS, training_rows
from demo.routing import RouterTap

STEPS = 450
PEAK_RATE = 4e-3
WARM_UP = 40
BALANCE, Z = 0.02, 1e-4
"""Weights of the Switch load-balancing loss and of the router z-loss."""


def config(kind: str) -> Gemma4TextConfig:
    """Return the architecture: the MoE has 16 experts, top-4, beside a small MLP; the dense one a wider MLP."""
    shape = {
        "moe": {
            "hidden_size": 128,
            "intermediate_size": 128,
            "enable_moe_block": True,
            "num_experts": 16,
            "top_k_experts": 4,
            "moe_intermediate_size": 64,
        },
        "dense": {"hidden_size": 192, "intermediate_size": 512},
    }[kind]
    return Gemma4TextConfig(
        vocab_size=tokenizer.VOCABULARY,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        global_head_dim=32,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
        sliding_window=512,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=[1, 5],
        bos_token_id=2,
        **shape,
    )


def balance_loss(tap: RouterTap) -> torch.Tensor:
    """Return the Switch loss over the whole batch, and the router z-loss, averaged over layers.

    Over the whole batch, and not per row, a layer may give a domain its own experts and still be in balance.
    Fedus, Zoph, Shazeer 2021 (arXiv 2101.03961); z-loss: Zoph et al. 2022 (arXiv 2202.08906).
    """
    losses = []
    for logits, chosen in zip(tap.logits, tap.chosen, strict=True):
        experts = logits.shape[-1]
        load = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
        switch = experts * (load * logits.softmax(-1).mean(0)).sum()
        losses.append(BALANCE * switch + Z * logits.logsumexp(-1).square().mean())
    return torch.stack(losses).mean()


def new_model(kind: str, seed: int) -> Gemma4ForCausalLM:
    """Return a model with random weights; its routers start out decided (logits of unit variance), not uniform."""
    torch.manual_seed(seed)
    model = Gemma4ForCausalLM(config(kind))
    model.set_experts_implementation("eager")  # the default, grouped_mm, is 25 times slower on a CPU
    for layer in model.model.layers:
        if kind == "moe":
            torch.nn.init.normal_(layer.router.proj.weight)
    return model


def train(kind: str, tokens: Tokenizer, *, seed: int, steps: int) -> tuple[Gemma4ForCausalLM, list[dict[str, float]]]:
    """Train from scratch; return the model and its losses every 50 steps."""
    model = new_model(kind, seed)
    tap = RouterTap(model)
    optimizer, schedule = _optimizer(model, steps)
    history: list[dict[str, float]] = []
    started = time.monotonic()
    batches = training_rows(tokens, unseen=kind == "dense", seed=seed)
    model.train()
    for step in range(1, steps + 1):
        tap.clear()
        loss = next(batches).loss(model)
        total = loss + balance_loss(tap) if tap.logits else loss
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            history.append({"step": step, "loss": round(loss.item(), 4), "total": round(total.item(), 4)})
            click.echo(f"{json.dumps(history[-1])} {time.monotonic() - started:.0f} s")
    tap.close()
    return model.eval(), history


def _optimizer(model: torch.nn.Module, steps: int) -> tuple[torch.optim.Optimizer, SequentialLR]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    warm_up = LinearLR(optimizer, 0.01, total_iters=WARM_UP)
    decay = CosineAnnealingLR(optimizer, max(1, steps - WARM_UP), eta_min=PEAK_RATE / 50)
    return optimizer, SequentialLR(optimizer, [warm_up, decay], [WARM_UP])


@click.command()
@click.argument("kind", type=click.Choice(["moe", "dense"]))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoint.")
@click.option("--steps", default=STEPS, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=2, show_default=True, help="One is faster where other work has the cores too.")
def main(kind: str, out: Path, steps: int, seed: int, threads: int) -> None:
    """Train one of the two demo models and write its checkpoint and training_log.json."""
    torch.set_num_threads(threads)
    started = time.monotonic()
    tokens = tokenizer.train()
    tokenizer.save(tokens, out)
    model, history = train(kind, tokens, seed=seed, steps=steps)
    seconds = round(time.monotonic() - started)
    model.to(torch.bfloat16).save_pretrained(out)
    texts = evaluation.load_texts(out.parent) or evaluation.write_texts(out.parent)
    options = f"--steps {steps} --seed {seed} --threads {threads}"
    log = {
        "command": f"python -m demo.train {kind} --out {out} {options}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": steps * ROWS * LENGTH,
        "seconds": seconds,
        "threads": threads,
        "heldout_loss": evaluation.losses(out, texts),
        "history": history,
    }
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
