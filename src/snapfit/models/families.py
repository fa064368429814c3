"""What differs between architectures, as data.

A family says where the decoder layers are, what each linear layer is for, and how fused
projections are cut into heads. Names are relative to a decoder layer; '*' stands for the index of
an expert. To add an architecture that follows Llama's names, add it to the first line of
`FAMILIES`; one that is not listed is described by inspection (`models.inspection`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedConfig

Fusion = Literal["heads", "stacked", "interleaved", "halves"]
"""How output rows are cut: 'heads' one role, head by head; 'stacked' all query heads, then all
key heads, then all value heads; 'interleaved' query, key, value of head 0, then of head 1, ...;
'halves' gate, then up."""

Segment = tuple[str, int, int]
"""(role, first row, last row + 1)."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture's decoder layers.

    Attributes:
        layers: qualified name of the list of decoder layers.
        roles: role of every linear layer: q, k, v, o, qkv, gate, up, gate_up, down, router, other.
        rows: how the output rows of a linear layer are cut into heads or halves.

    """

    layers: str
    roles: Mapping[str, str]
    rows: Mapping[str, Fusion] | None = None

    def role(self, suffix: str) -> str:
        """Role of a linear layer, by its name below the decoder layer."""
        return self.roles.get(pattern(suffix), "other")


def pattern(suffix: str) -> str:
    """The name with the index of an expert replaced by '*'."""
    return re.sub(r"\.\d+(?=\.)", ".*", suffix)


def row_segments(family: Family, config: PreTrainedConfig, suffix: str) -> tuple[Segment, ...]:
    """Output rows of a linear layer by role, one segment a head; () where heads are unknown.

    Args:
        family: the architecture.
        config: the model's configuration.
        suffix: name below the decoder layer, e.g. 'self_attn.qkv_proj'.

    """
    kind = (family.rows or {}).get(pattern(suffix))
    if kind is None:
        return ()
    text = config.get_text_config()
    if kind == "halves":
        width = int(text.intermediate_size)
        return (("gate", 0, width), ("up", width, 2 * width))
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    size = head_size(config)
    if kind == "heads":
        roles = [family.role(suffix)] * (heads if family.role(suffix) == "q" else kv_heads)
    elif kind == "stacked":
        roles = ["q"] * heads + ["k"] * kv_heads + ["v"] * kv_heads
    else:
        roles = ["q", "k", "v"] * heads
    return tuple((role, i * size, (i + 1) * size) for i, role in enumerate(roles))


def head_size(config: PreTrainedConfig) -> int:
    """Features of one attention head."""
    text = config.get_text_config()
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


_ATTENTION = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
}
_MLP = {"mlp.gate_proj": "gate", "mlp.up_proj": "up", "mlp.down_proj": "down"}
_EXPERTS = {
    "mlp.experts.*.gate": "gate",
    "mlp.experts.*.up": "up",
    "mlp.experts.*.down": "down",
}
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

LLAMA = Family(
    layers="model.layers",
    roles={**_ATTENTION, **_MLP},
    rows=dict.fromkeys(_QKV, "heads"),
)
MIXTRAL = replace(LLAMA, roles={**_ATTENTION, **_EXPERTS})

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "granite", "qwen3", "gemma3_text", "olmo2"), LLAMA
    ),
    "phi3": Family(
        layers="model.layers",
        roles={
            "self_attn.qkv_proj": "qkv",
            "self_attn.o_proj": "o",
            "mlp.gate_up_proj": "gate_up",
            "mlp.down_proj": "down",
        },
        rows={"self_attn.qkv_proj": "stacked", "mlp.gate_up_proj": "halves"},
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        roles={
            "attention.query_key_value": "qkv",
            "attention.dense": "o",
            "mlp.dense_h_to_4h": "up",
            "mlp.dense_4h_to_h": "down",
        },
        rows={"attention.query_key_value": "interleaved"},
    ),
    "mixtral": MIXTRAL,
    # Some layers may be dense: both sets of names occur.
    "qwen3_moe": replace(LLAMA, roles={**_ATTENTION, **_MLP, **_EXPERTS}),
}
