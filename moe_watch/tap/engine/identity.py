"""What is being served: the ``Model`` frame, and a digest of the weights that a redeployment changes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from moe_watch import __version__, wire
from moe_watch.tap.engine.counts import Shape
from moe_watch.tap.send.sender import Build, Header
from moe_watch.tap.send.status import log

_BLOCK: Final = 4096
_BLOCKS: Final = 16  # of every file


def served_name(config: Any) -> str:
    """Return the name that clients use for the model."""
    name = config.model_config.served_model_name or config.model_config.model
    return str(name if isinstance(name, str) else name[0])[:255]


def announce(config: Any, runner: str, shape: Shape | None, layers: Sequence[Any]) -> Build:
    """Return the making of the ``Model`` frame of a loaded model; ``shape`` is None for a dense one."""
    import vllm

    model, parallel = config.model_config, config.parallel_config
    tp, dp = parallel.tensor_parallel_size, parallel.data_parallel_size
    ep = tp * dp if parallel.enable_expert_parallel else 1
    fields: dict[str, Any] = {
        "model": served_name(config),
        "revision": str(model.revision or getattr(model.hf_config, "_commit_hash", None) or ""),
        "architecture": str((model.architectures or [""])[0]),
        "weights": weights_digest(str(model.model), model.revision),
        "layer_ids": [layer.layer_id for layer in layers],
        "ranks": ep if layers else 1,
        "vllm_version": vllm.__version__,
        "tap_version": __version__,
        "runner": runner,
        "moe_backend": _backend(layers[0]) if layers else "",
        "quantization": str(model.quantization or ""),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parallel": {
            "tp": tp,
            "pp": parallel.pipeline_parallel_size,
            "dp": dp,
            "ep": ep,
        },
        "eplb": bool(parallel.enable_eplb),
        "max_model_len": int(model.max_model_len),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
    }
    if shape is not None:
        fields |= {
            "layers": shape.layers,
            "experts": shape.experts,
            "top_k": shape.top_k,
        }

    def build(header: Header) -> wire.Model:
        return wire.Model(**header, **fields)

    return build


def weights_digest(model: str, revision: str | None) -> str:
    """Return a digest of names, sizes and some blocks of the checkpoint's files, "" where they are not found.

    Two files that differ in the blocks read differ in the digest; a change elsewhere alone is not seen.
    """
    try:
        folder = _folder(model, revision)
        digest = hashlib.sha256()
        files = sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".bin", ".gguf", ".pt"})
        for path in files:
            _add_file(digest, path)
    except Exception:  # noqa: BLE001 - a label is not worth a model
        log.info("moe-watch tap: no digest of the weights", exc_info=True)
        return ""
    return digest.hexdigest()[:32] if files else ""


def _folder(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))


def _add_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name} {size} ".encode())
    with path.open("rb") as file:
        for block in range(_BLOCKS):
            file.seek(size * block // _BLOCKS)
            digest.update(file.read(_BLOCK))


def _backend(layer: Any) -> str:
    """Return the classes that compute the experts, as ``method/kernel``."""
    method = getattr(layer, "_quant_method", None)
    kernel = getattr(
        getattr(getattr(method, "moe_kernel", None), "impl", None),
        "fused_experts",
        None,
    )
    names = [type(part).__name__ for part in (method, kernel) if part is not None]
    return "/".join(names) or type(layer).__name__
