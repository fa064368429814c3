"""Tiny random checkpoints of every architecture, for tests.

Weights are large enough (std 0.15) and biases and norms random enough that the outputs of two
models agree only if every tensor went to its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from snapfit.models.describe import ModelSource, empty_model, open_model
from snapfit.models.weights import open_weights

VOCABULARY = 64
LAYERS = 3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

_SPECIFIC: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 12},
    "gemma3_text": {
        "head_dim": 12,
        "query_pre_attn_scalar": 12,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "phi3": {},
    "olmo2": {},
    "granite": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
    },
    "gpt_neox": {"use_parallel_residual": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 12,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
}

ARCHITECTURES: tuple[str, ...] = tuple(_SPECIFIC)
"""Architectures that snapfit describes as data."""

EXTRA: dict[str, dict[str, Any]] = {
    "stablelm": {"use_qkv_bias": True},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 128},
}
"""Architectures that snapfit finds by inspection, or cannot handle (gpt2)."""

BY_INSPECTION = ("stablelm", "opt", "olmoe")
ALL = (*ARCHITECTURES, *BY_INSPECTION)
MOE = ("mixtral", "qwen3_moe", "olmoe")

WITHOUT_KV_HEADS = ("gpt_neox", "opt", "gpt2")
"""Every query head of these has a key and value head of its own."""


def build(
    architecture: str,
    folder: Path,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> Path:
    """Save a tiny random model and its tokenizer in `folder` and return it.

    Args:
        architecture: one of `ARCHITECTURES` or `EXTRA`.
        folder: where to save; made if needed.
        seed: of all weights.
        dtype: of the checkpoint.
        changes: other settings of the configuration.

    """
    settings = {**_COMMON, **{**_SPECIFIC, **EXTRA}[architecture], **changes}
    if architecture in WITHOUT_KV_HEADS:
        del settings["num_key_value_heads"]
    config = AutoConfig.for_model(architecture, **settings)
    model = AutoModelForCausalLM.from_config(config)
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter values that matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        matrix = parameter.ndim >= 2
        parameter.copy_(noise * 0.15 if matrix else 1.0 + 0.1 * noise)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.sub_(1.0)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: '<pad>', '<s>', '</s>', '<unk>', then 'w4' ... 'w63'."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(4, VOCABULARY))]
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def sample_ids(batch: int = 2, length: int = 16, seed: int = 0) -> torch.Tensor:
    """(batch, length) token ids, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (batch, length), generator=generator)


def reference(folder: Path, **options: Any) -> PreTrainedModel:
    """The model as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def loaded(folder: Path) -> tuple[ModelSource, PreTrainedModel]:
    """The model as snapfit loads it."""
    source = open_model(folder)
    model = empty_model(source)
    open_weights(source, model).load_into(model, "")
    return source, model


@torch.no_grad()
def logits(model: PreTrainedModel, ids_BT: torch.Tensor | None = None) -> torch.Tensor:
    """Logits of `ids_BT` (`sample_ids()`), the same to the bit for equal weights.

    A file maps its tensors at any multiple of 8 bytes, and on some CPUs the rounding of a matrix
    product depends on where its matrix starts: so weights move to memory torch has aligned.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.eval()(sample_ids() if ids_BT is None else ids_BT).logits
