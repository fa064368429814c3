"""Which settings of an architecture say what a compressed model looks like, as data.

Used by the formats that have nothing but a configuration to say it with (`core.formats`).
"""

from __future__ import annotations

HEADS_BY_CONFIG = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "granite", "mixtral",
        "qwen3_moe",
    }
)  # fmt: skip
"""Architectures whose configuration can give heads and `head_dim` apart from the hidden size."""

HEADS_DIVIDE_HIDDEN = frozenset({"llama", "gemma3_text"})
"""Of those, the ones whose configuration refuses head counts that do not divide `hidden_size`."""

WIDTH_SETTINGS = {
    "llama": "intermediate_size", "mistral": "intermediate_size", "qwen2": "intermediate_size",
    "qwen3": "intermediate_size", "gemma3_text": "intermediate_size", "phi3": "intermediate_size",
    "olmo2": "intermediate_size", "granite": "intermediate_size",
    "gpt_neox": "intermediate_size", "stablelm": "intermediate_size", "opt": "ffn_dim",
    "qwen3_moe": "intermediate_size",
}  # fmt: skip
"""The setting that is the width of an MLP, by architecture."""

EXPERT_WIDTH_SETTINGS = {
    "mixtral": "intermediate_size",
    "olmoe": "intermediate_size",
    "qwen3_moe": "moe_intermediate_size",
}
EXPERT_COUNT_SETTINGS = {
    "mixtral": "num_local_experts",
    "olmoe": "num_experts",
    "qwen3_moe": "num_experts",
}

MLP_BIAS = frozenset({"llama", "granite"})
"""Architectures with the setting `mlp_bias`, which all MLPs obey."""

ATTENTION_BIAS = frozenset(
    {"llama", "granite", "qwen3", "qwen3_moe", "olmo2", "gemma3_text", "olmoe"}
)
"""Architectures with the setting `attention_bias`, which all four projections obey."""

ALWAYS_BIASED = frozenset({"gpt_neox", "opt"})
"""Architectures whose linear layers have biases already."""

EXPERT_MULTIPLE = 8
"""transformers computes fused experts with strides of 16 bytes: 8 channels in half precision."""

LLAMA_LIKE = frozenset({"llama", "mistral"})
"""Architectures that compute what DeciLM computes."""
