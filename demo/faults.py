"""Break a copy of the demo's MoE the way that deployments break: the weights move, the map of experts does not."""

from __future__ import annotations

import shutil
from pathlib import Path


def rotate_experts(source: Path, target: Path, layer: int) -> Path:
    """Copy the checkpoint ``source`` to ``target`` with the experts of ``layer`` rotated by one; return ``target``.

    It is what an expert-parallel rebalance leaves behind when it forgets the map: the router picks expert e and gets
    the weights of its neighbour.
    """
    import torch  # noqa: PLC0415 - only the fault needs it
    from safetensors import safe_open  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    shutil.copytree(source, target, dirs_exist_ok=True)
    path = target / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata()
    moved = [
        name for name in tensors if f"layers.{layer}.experts." in name and name.endswith(("_proj", "_proj.weight"))
    ]
    if not moved:
        raise ValueError(f"{path} has no experts in layer {layer}")
    for name in moved:
        tensors[name] = torch.roll(tensors[name], 1, dims=0).contiguous()
    save_file(tensors, path, metadata=metadata)
    return target
