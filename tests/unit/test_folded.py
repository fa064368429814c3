"""Factors that are multiplied back, block by block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.folded import folded
from snapfit.core.errors import SnapfitError
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.structure import Structure

LAYOUT = ModuleLayout(
    inputs=6, blocks=(Block(rows=4, rank=2), Block(rows=3, rank=None), Block(rows=2, rank=3))
)
PLAN = Blueprint(structure=Structure(modules={"m.k": LAYOUT}))


def drawn() -> tuple[Tensor, dict[str, Tensor]]:
    """A dense weight, and the factors of its first four and last two rows."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 6), "b.0": (4, 2), "b.2": (2, 3)}
    factors = {
        f"m.k.{part}.weight": torch.randn(*shape, generator=generator)
        for part, shape in shapes.items()
    }
    return torch.randn(9, 6, generator=generator), factors


def maker_of(dense: Tensor) -> Any:
    return SimpleNamespace(cut_factor=lambda _name, tensor: tensor, tensor=lambda _name: dense)


def test_every_block_has_its_own_rows_of_the_first_factor() -> None:
    dense, factors = drawn()
    ((name, whole),) = folded(factors.items(), PLAN, maker_of(dense))
    a, first, last = factors.values()
    assert name == "m.k.weight"
    torch.testing.assert_close(whole, torch.cat([first @ a[:2], dense[4:7], last @ a[2:]]))


def test_factors_that_are_missing_or_belong_nowhere_are_refused() -> None:
    dense, factors = drawn()
    stranger = {"m.q.a.weight": dense}
    with pytest.raises(SnapfitError, match=r"m\.q\.a\.weight is a tensor that the plan has no"):
        list(folded(stranger.items(), PLAN, maker_of(dense)))
    del factors["m.k.b.2.weight"]
    with pytest.raises(SnapfitError, match=r"factors of m\.k are missing"):
        list(folded(factors.items(), PLAN, maker_of(dense)))
