"""Configuration and model of the 'decilm' format: Llama with a shape of its own in every layer.

snapfit copies this file beside the weights it writes, so it may import nothing of snapfit. The
names and the fields of `block_configs` are those of NVIDIA's Nemotron models (model type
'nemotron-nas'), which vLLM, TensorRT-LLM and llama.cpp read natively:

    "block_configs": [{"attention": {"no_op": false, "replace_with_linear": false,
                                     "n_heads_in_group": 3},
                       "ffn": {"no_op": false, "replace_with_linear": false,
                               "intermediate_size": 1200}}, ...]

A width that is a multiple of 256 can also be given as `ffn_mult`, which is all that llama.cpp and
TensorRT-LLM read: 2/3 ffn_mult hidden_size, cut to a whole number and rounded up to 256.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class Fields(dict[str, Any]):
    """A table whose entries are attributes too, as the engines expect of `block_configs`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class DeciLMConfig(LlamaConfig):  # type: ignore[no-untyped-call]
    """Llama's configuration with `block_configs`, one entry a layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            Fields({part: Fields(fields) for part, fields in block.items()})
            for block in block_configs or []
        ]
        if self.block_configs and len(self.block_configs) != self.num_hidden_layers:
            raise ValueError(
                f"{len(self.block_configs)} block_configs for {self.num_hidden_layers} layers"
            )


class NoAttention(nn.Module):
    """A removed attention: zeros. It caches a zero a token, since masks are made from its length.

    Args:
        layer_idx: place in the cache.

    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: Tensor, past_key_values: Any = None, cache: Any = None, **_: Any
    ) -> tuple[Tensor, None]:
        """(batch, tokens, hidden) -> zeros of that shape, and no attention weights."""
        held = past_key_values if cache is None else cache  # its name since transformers 5.24
        if held is not None:
            batch, tokens, _hidden = hidden_states.shape
            zeros = hidden_states.new_zeros(batch, 1, tokens, 1)
            held.update(zeros, zeros, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """A removed MLP: zeros."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, tokens, hidden) -> zeros of that shape."""
        return torch.zeros_like(hidden_states)


class DeciLMForCausalLM(LlamaForCausalLM):
    """Llama whose layers have MLPs of their own width, or lack attention or MLP."""

    config_class = DeciLMConfig

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        for index, (layer, block) in enumerate(
            zip(self.model.layers, config.block_configs, strict=True)
        ):
            if block.attention.no_op:
                layer.self_attn = NoAttention(index)
                layer.input_layernorm = nn.Identity()
            if block.ffn.no_op:
                layer.mlp = NoMLP()
                layer.post_attention_layernorm = nn.Identity()
            else:
                own = copy.copy(config)
                own.intermediate_size = width_of(block.ffn, config.hidden_size)
                layer.mlp = LlamaMLP(own)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]


def width_of(ffn: Fields, hidden: int) -> int:
    """Channels of an MLP: `intermediate_size`, or what the engines make of `ffn_mult`."""
    if "ffn_mult" not in ffn:
        return int(ffn.intermediate_size)
    return -(-int(2 * ffn.ffn_mult * hidden / 3) // 256) * 256
