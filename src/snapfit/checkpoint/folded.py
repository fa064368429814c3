"""`folded` checkpoints: factors are multiplied back, so the model is smaller in no engine.

Shape suffixes: M output features, N input features, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from snapfit.checkpoint.blueprint import Blueprint, TensorMaker
from snapfit.checkpoint.save import Named
from snapfit.core.errors import SnapfitError
from snapfit.core.layout import ModuleLayout


def folded(factors: Iterable[Named], blueprint: Blueprint, maker: TensorMaker) -> Iterator[Named]:
    """Whole weights, by name, of the modules that `factors` are of.

    Args:
        factors: '<module>.a.weight' and '<module>.b.weight' or '<module>.b.<i>.weight'.
        blueprint: with ranks.
        maker: gives the rows of blocks that are dense.

    Raises:
        SnapfitError: a factor is missing.

    """
    layouts = blueprint.structure.modules
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in factors:
        module, _, part = _split(name)
        parts = waiting.setdefault(module, {})
        parts[part] = maker.cut_factor(name, tensor)
        layout = layouts.get(module)
        if layout is None:
            raise SnapfitError(f"{name} is a tensor that the plan has no place for")
        if len(parts) == 1 + len(layout.ranks):
            yield f"{module}.weight", _product(module, layout, waiting.pop(module), maker)
    if waiting:
        raise SnapfitError(f"factors of {next(iter(waiting))} are missing; delete the work folder")


def _split(name: str) -> tuple[str, str, str]:
    """(module, '.', 'a', 'b' or 'b.<i>') of a factor's name."""
    stem = name.removesuffix(".weight")
    module, dot, part = stem.rpartition(".")
    if part.isdecimal():
        module, dot, kind = module.rpartition(".")
        part = f"{kind}.{part}"
    return module, dot, part


def _product(
    module: str, layout: ModuleLayout, parts: Mapping[str, Tensor], maker: TensorMaker
) -> Tensor:
    a_RN, start, row, blocks = parts["a"].float(), 0, 0, []
    dense_MN = None
    for index, block in enumerate(layout.blocks):
        if block.rank is None:
            dense_MN = maker.tensor(f"{module}.weight") if dense_MN is None else dense_MN
            blocks.append(dense_MN[row : row + block.rows].float())
        else:
            b_MR = parts["b" if len(layout.blocks) == 1 else f"b.{index}"].float()
            blocks.append(b_MR @ a_RN[start : start + block.rank])
            start += block.rank
        row += block.rows
    return torch.cat(blocks)
