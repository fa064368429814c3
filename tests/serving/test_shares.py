"""What each worker holds of a changed layer adds up to the layer; vLLM is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snapfit.checkpoint.vllm.shares import Part, Share, Span, share_of, split
from snapfit.checkpoint.vllm.weights import Loader, compute, make_holders, make_places
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.layout import Block, ModuleLayout
from snapfit.nn.factored import FactoredLinear

INPUTS = 24
FACTORED = ModuleLayout(inputs=INPUTS, blocks=(Block(rows=12, rank=5),))
DENSE = ModuleLayout(inputs=INPUTS, blocks=(Block(rows=8, rank=None),))
BLOCKS = ModuleLayout(
    inputs=INPUTS,
    blocks=(Block(rows=6, rank=3), Block(rows=4, rank=None), Block(rows=6, rank=1)),
)


def module(layout: ModuleLayout, *, bias: bool) -> nn.Module:
    """The layer itself, as transformers computes it."""
    if layout.ranks:
        return FactoredLinear(layout, bias=bias)
    return nn.Linear(layout.inputs, layout.outputs, bias=bias)


def stored(layer: nn.Module) -> dict[str, Tensor]:
    """Its tensors as vLLM's loader names them to the plug-in."""
    names = layer.state_dict()
    return {name if name != "bias" else "b.bias": tensor for name, tensor in names.items()}


def worker(
    layers: Sequence[nn.Module],
    layouts: Sequence[ModuleLayout],
    spans: Sequence[tuple[Span, ...]],
    columns: Span,
    *,
    bias: bool,
    biased: bool = True,
) -> tuple[nn.Module, Share]:
    """A worker's layer with everything loaded through its places."""
    parts = [
        Part(name=f"m{index}", layout=layout, spans=spans[index], bias=bias)
        for index, layout in enumerate(layouts)
    ]
    share = share_of(parts)
    holder = nn.Module()
    make_holders(holder, share, columns[1] - columns[0], torch.float32)
    loader = Loader(holder, share, columns, biased=biased)
    missing = set(loader.expected)

    def load(leaf: str, tensor: Tensor, shard: Any) -> None:
        missing.discard(loader.load(leaf, tensor, shard))

    make_places(holder, share, torch.float32, load)
    for index, layer in enumerate(layers):
        for name, tensor in stored(layer).items():
            place: Any = holder.get_parameter(name)
            place.weight_loader(place, tensor, index)
    assert not missing
    return holder, share


def product(holder: Any, x: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x, holder.weight, bias)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ways", [1, 2])
@torch.no_grad()
def test_columns_of_fused_layers(ways: int, bias: bool) -> None:
    layouts = (FACTORED, DENSE, BLOCKS)
    layers = [module(layout, bias=bias) for layout in layouts]
    x = torch.randn(3, INPUTS)
    expected = [layer(x) for layer in layers]
    for index in range(ways):
        spans = [(split("m", layout.outputs, ways, index),) for layout in layouts]
        holder, share = worker(layers, layouts, spans, (0, INPUTS), bias=bias)
        own = [out[:, slice(*span[0])] for out, span in zip(expected, spans, strict=True)]
        found = compute(holder, share, x, product)
        torch.testing.assert_close(found, torch.cat(own, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [FACTORED, DENSE, BLOCKS], ids=["factored", "dense", "blocks"])
@pytest.mark.parametrize("ways", [1, 2, 3])
@torch.no_grad()
def test_rows_add_up_with_one_bias(layout: ModuleLayout, ways: int) -> None:
    layer = module(layout, bias=True)
    x = torch.randn(3, INPUTS)
    total = torch.zeros(3, layout.outputs)
    for index in range(ways):
        columns = split("m", INPUTS, ways, index)
        holder, share = worker(
            [layer], [layout], [((0, layout.outputs),)], columns, bias=True, biased=index == 0
        )
        total += compute(holder, share, x[:, slice(*columns)], product)
    torch.testing.assert_close(total, layer(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_matrix_fused_on_disk_gives_each_worker_some_of_every_part() -> None:
    """Phi-3's query, key and value: 8 + 4 + 4 rows of one factored matrix."""
    layout = ModuleLayout(inputs=INPUTS, blocks=(Block(rows=16, rank=7),))
    layer = module(layout, bias=False)
    x = torch.randn(3, INPUTS)
    for index in range(2):
        spans = tuple(
            split("qkv", size, 2, index, start) for size, start in ((8, 0), (4, 8), (4, 12))
        )
        holder, share = worker([layer], [layout], [spans], (0, INPUTS), bias=False)
        assert len(share.outputs) == 1  # rows of one block are one product
        own = torch.cat([layer(x)[:, slice(*span)] for span in spans], -1)
        found = compute(holder, share, x, product)
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)


def test_factors_that_no_row_of_a_worker_needs_are_not_held() -> None:
    part = Part(name="k", layout=BLOCKS, spans=((0, 8),), bias=False)
    assert share_of([part]).first == 3 + 2  # a rank, and two of the dense rows
    part = Part(name="k", layout=BLOCKS, spans=((8, 16),), bias=False)
    assert share_of([part]).first == 2 + 1


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(SnapfitError, match=r"gate_proj has 75 features, which 2 workers cannot"):
        split("gate_proj", 75, 2, 0)
    other = ModuleLayout(inputs=INPUTS + 1, blocks=(Block(rows=8, rank=None),))
    parts = [
        Part(name=name, layout=layout, spans=((0, 8),), bias=False)
        for name, layout in (("gate", DENSE), ("up", other))
    ]
    with pytest.raises(SnapfitError, match=r"gate and up together, but they read \[24, 25\]"):
        share_of(parts)


@pytest.mark.parametrize(
    ("leaf", "shape", "match"),
    [
        ("a.weight", (6, INPUTS), r"m0.a.weight is \[6, 24\] .* says \[5, 24\]"),
        ("b.weight", (12, 6), r"m0.b.weight is \[12, 6\] .* says \[12, 5\]"),
        ("weight", (12, INPUTS), r"m0.weight is \[12, 24\] .* says \[0\]"),
        ("b.bias", (12,), r"no place for m0.b.bias"),
    ],
)
def test_tensors_of_other_checkpoints_are_refused(
    leaf: str, shape: tuple[int, ...], match: str
) -> None:
    share = share_of([Part(name="m0", layout=FACTORED, spans=((0, 12),), bias=False)])
    holder = nn.Module()
    make_holders(holder, share, INPUTS, torch.float32)
    loader = Loader(holder, share, (0, INPUTS), biased=True)
    with pytest.raises(CorruptFile, match=match):
        loader.load(leaf, torch.zeros(shape), None)
