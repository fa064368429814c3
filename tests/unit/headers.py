"""Checkpoints of shapes only: real headers, and holes in place of weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ITEM = {"F32": 4, "F16": 2, "I32": 4}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
    "num_hidden_layers": 2,
}
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (160, 64),
    "mlp.up_proj": (160, 64),
    "mlp.down_proj": (64, 160),
}


def llama(replaced: dict[str, dict[str, tuple[int, ...]]] | None = None, layers: int = 2) -> dict:
    """Shapes of a small Llama; of a module that is `replaced`, these tensors instead."""
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (96, 64),
        "model.norm.weight": (64,),
        "lm_head.weight": (96, 64),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = (64,)
        tensors[f"{prefix}post_attention_layernorm.weight"] = (64,)
        for name, shape in SHAPES.items():
            own = (replaced or {}).get(name, {f"{name}.weight": shape})
            tensors |= {prefix + key: size for key, size in own.items()}
    return tensors


def write(
    folder: Path,
    tensors: dict[str, tuple[int, ...]],
    config: dict[str, Any] | None = None,
    dtype: str = "F16",
) -> Path:
    """A folder that has these tensors in its header."""
    folder.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, shape in tensors.items():
        start, end = end, end + ITEM[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + end)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder
