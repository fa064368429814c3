"""Tiny compressed checkpoints that vLLM can serve, and what transformers makes of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from structures import Case, case, resized
from torch import Tensor
from transformers import PreTrainedModel

from snapfit.core.combination import untouched
from snapfit.core.schedule import Depth, Schedule
from snapfit.core.space import Group

HEAD_DIM = 32
"""vLLM has no attention on the CPU for smaller heads."""

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "sliding_window": 24,
}

SPECIFIC: dict[str, dict[str, Any]] = {
    "qwen2": {"hidden_size": 128},  # vLLM takes heads of hidden / heads features, whatever is said
    "gemma3_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": HEAD_DIM,
    },
}

DROPPED = 2
"""The layer that is gone."""

TOKENS = 64


def three_of_four() -> Schedule:
    """Layer 2 of four is dropped."""
    whole = untouched(range(4))
    left = tuple(layer for layer in whole if layer[0][0] != DROPPED)
    return Schedule(
        full=4,
        sizes={4: Depth(layers=whole), 3: Depth(layers=left)},
        losses={4: 0.0, 3: 1.0},
        unit="nats",
    )


def plain(architecture: str, folder: Path, **changes: Any) -> Case:
    """The uncompressed model."""
    settings = {**SHAPE, **SPECIFIC.get(architecture, {}), **changes}
    if architecture in {"llama", "qwen2", "qwen3"}:
        settings.pop("sliding_window", None)
    return case(architecture, folder, schedule=three_of_four(), **settings)


def odd(given: Case, *, dense: int | None = None) -> Case:
    """Odd ranks beside dense matrices, a width a layer, a layer dropped, odd shapes everywhere.

    Args:
        given: the uncompressed model.
        dense: a layer that is not factored.

    """
    sizes: dict[str, int] = {}
    for group in given.space.groups:
        if group.kind == "depth":
            sizes[group.name] = 3
        elif group.kind == "width":
            sizes[group.name] = 80 - 7 * (1 + group.layer)
        elif group.kind == "rank" and group.layer != dense and (rank := _rank(group)) is not None:
            sizes[group.name] = rank
    return resized(given, sizes)


def _rank(group: Group, layer: int | None = None) -> int | None:
    """Layer 0: q, v, o and up are factored, k, gate and down dense; layer 1: all; layer 3: down."""
    leaf = group.name.rpartition(".")[2]
    chosen = {
        0: {"q_proj": 17, "v_proj": 9, "o_proj": 21, "up_proj": 23},
        1: {"q_proj": 31, "k_proj": 13, "v_proj": 11, "o_proj": 19, "gate_proj": 15, "up_proj": 27},
        3: {"down_proj": 25},
    }
    chosen[1]["down_proj"] = 29
    return chosen.get(group.layer if layer is None else layer, {}).get(leaf)


def narrow(given: Case, *, uniform: bool) -> Case:
    """No factors: a layer dropped, and one width for all layers, or one each."""
    sizes: dict[str, int] = {}
    for group in given.space.groups:
        if group.kind == "depth":
            sizes[group.name] = 3
        elif group.kind == "width":
            sizes[group.name] = 51 if uniform else 80 - 7 * (1 + group.layer)
    return resized(given, sizes)


def rough(given: Case) -> Case:
    """Fewer heads in one layer, attention absent in another, the MLP in a third; some biases."""
    sizes: dict[str, int] = {}
    means: dict[str, Tensor] = {}
    for group in given.space.groups:
        if group.kind == "kv_heads":
            sizes[group.name] = {0: 1, 1: 0}.get(group.layer, group.full)
        elif group.kind == "width":
            sizes[group.name] = {0: 51, 3: 0}.get(group.layer, group.full)
        if group.layer == 0 and group.kind in {"kv_heads", "width"}:
            means |= {
                matrix.name: torch.linspace(-1, 1, matrix.cols)
                for matrix in group.matrices
                if matrix.axis == "in"
            }
    changed = resized(given, sizes)
    return Case(**{**vars(changed), "means": means})


def shared(given: Case) -> Case:
    """For two workers: odd ranks, even widths, heads that are split and one that is copied."""
    sizes: dict[str, int] = {}
    for group in given.space.groups:
        if group.kind == "width":
            sizes[group.name] = 80 - 14 * (1 + group.layer)
        elif group.kind == "kv_heads" and group.layer in {0, 3}:
            sizes[group.name] = 1 if group.layer == 0 else 0
        elif group.kind == "rank" and group.layer in {1, 2} and (rank := _rank(group, 1)):
            sizes[group.name] = rank
    return resized(given, sizes)


def factors(given: Case) -> Iterator[tuple[str, Tensor]]:
    """Random factors of the whole matrices that a case factors, by the compressed model's names."""
    generator = torch.Generator().manual_seed(3)
    blueprint = given.blueprint
    for group in given.space.of_kind("rank").groups:
        rank = given.sizes.get(group.name)
        if rank is None:
            continue
        for matrix in group.matrices:
            name = blueprint.output(matrix.name)
            if name is not None:
                a_RN = torch.randn(rank, matrix.cols, generator=generator)
                b_MR = torch.randn(matrix.rows, rank, generator=generator)
                yield f"{name}.a.weight", a_RN * 0.15
                yield f"{name}.b.weight", b_MR * 0.3


def prompts(count: int = 16, seed: int = 1) -> list[list[int]]:
    """Random prompts of 1 to 24 tokens."""
    generator = random.Random(seed)
    return [
        [generator.randrange(4, 64) for _ in range(1 + 3 * number % 24)] for number in range(count)
    ]


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: Sequence[int], tokens: int = TOKENS) -> list[int]:
    """transformers' greedy continuation; nothing ends it early."""
    ids = torch.tensor([list(prompt)])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in found[0, len(prompt) :]]


@torch.no_grad()
def gap(model: PreTrainedModel, prompt: Sequence[int], ours: int, theirs: int) -> float:
    """By how much the reference prefers its own next token over another's."""
    logits = model(torch.tensor([list(prompt)])).logits[0, -1].double()
    return float(logits[ours] - logits[theirs])
