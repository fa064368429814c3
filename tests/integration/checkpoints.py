"""Tiny factored checkpoints, written without a job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.formats import save
from snapfit.checkpoint.save import MAX_SHARD_SIZE
from snapfit.checkpoint.writer import Written
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.structure import Structure
from snapfit.models.source import ModelSource, empty_model, open_model
from snapfit.models.weights import open_weights

Q = "model.layers.0.self_attn.q_proj"
IDS = torch.arange(4, 16)[None]


def dense(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    settings = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        **changes,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def chosen(source: ModelSource, suffix: str) -> dict[str, ModuleLayout]:
    """Rank 5 for every linear layer whose name ends in `suffix`."""
    return {
        name: ModuleLayout(
            inputs=module.in_features, blocks=(Block(rows=module.out_features, rank=5),)
        )
        for name, module in empty_model(source).named_modules()
        if isinstance(module, nn.Linear) and "layers." in name and name.endswith(suffix)
    }


def random_factors(layouts: dict[str, ModuleLayout]) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for name, layout in layouts.items():
        yield f"{name}.a.weight", torch.randn(5, layout.inputs, generator=generator)
        yield f"{name}.b.weight", torch.randn(layout.outputs, 5, generator=generator)


def write(
    base: Path, folder: Path, suffix: str = "_proj", max_shard_size: int = MAX_SHARD_SIZE
) -> Written:
    source = open_model(base)
    layouts = chosen(source, suffix)
    folder.mkdir()
    return save(
        folder,
        source=source,
        model=empty_model(source),
        reader=open_weights(source),
        blueprint=Blueprint(structure=Structure(modules=layouts)),
        factors=random_factors(layouts),
        max_shard_size=max_shard_size,
    )
