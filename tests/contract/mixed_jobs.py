"""Jobs of mixed plans for tiny models, and a model for which every kind is right at one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

from snapfit.core.options import Options
from snapfit.core.progress import Silent
from snapfit.pipeline.mixed import MixedJob

LAYERS = 6
IDLE, NARROW, LOW = 4, 1, 2
"""A layer that does hardly anything, one with idle channels, one with a query matrix of rank 4."""


def crafted(architecture: str, folder: Path) -> Path:
    """A model for which dropping, narrowing and factoring are each right at one place."""
    build(architecture, folder, num_hidden_layers=LAYERS)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    layer = "model.layers.{}.{}.weight".format
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[layer(IDLE, name)] *= 1e-3
    tensors[layer(NARROW, "mlp.up_proj")][::4] *= 1e-3
    query = layer(LOW, "self_attn.q_proj")
    u, s, v = torch.linalg.svd(tensors[query], full_matrices=False)
    s[4:] *= 1e-3
    tensors[query] = u @ torch.diag(s) @ v
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def options(work: Path, **changes: Any) -> Options:
    given: dict[str, Any] = {"ratio": 0.2, "align": 4, "calib_tokens": 512, "context": 32}
    return Options(work=work, **{"method": "mixed", **given, **changes})


def job(model: Path, asked: Options) -> MixedJob:
    return MixedJob(model=str(model), options=asked, progress=Silent())
