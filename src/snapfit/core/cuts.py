"""From a plan's sizes to the structure of the compressed model, and to what is kept of each tensor.

`structure_of` needs counts only, so that a format can be asked at planning time whether it holds
a plan. `cuts_of` needs the order of every group's units too: the kept ones are the first `size` of
the order, and stay in the model's own order. Names in a `Structure` are the compressed model's,
names in `Cuts` those of the source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from snapfit.core.combination import Combination, is_untouched
from snapfit.core.errors import SnapfitError
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.renaming import EXPERT, Index, Names, layers_path, untouched_layers
from snapfit.core.schedule import Schedule
from snapfit.core.space import Group, Matrix, Space
from snapfit.core.structure import Structure, SubLayer

Orders = Mapping[str, Index]
"""{group: its units, most important first}."""

Part = tuple[Group, Matrix]
"""A matrix and the group that decides about it."""


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """What is kept of every tensor of the source that is cut; others are kept whole.

    Attributes:
        rows: output rows of linear layers, by module name.
        cols: input columns of linear layers, by module name.
        entries: of vectors, by parameter name.
        experts: of containers of experts, by name.

    """

    rows: Mapping[str, Index] = field(default_factory=dict)
    cols: Mapping[str, Index] = field(default_factory=dict)
    entries: Mapping[str, Index] = field(default_factory=dict)
    experts: Mapping[str, Index] = field(default_factory=dict)


def structure_of(
    space: Space,
    sizes: Mapping[str, int],
    *,
    schedule: Schedule | None = None,
    orders: Orders | None = None,
    biased: Collection[str] = (),
) -> Structure:
    """The structure that a plan leads to.

    Args:
        space: the whole space, or at least every group that is decided.
        sizes: the chosen size of each group; a missing group stays as it is.
        schedule: what the sizes of the depth group mean.
        orders: as for `cuts_of`. Without it the first experts of a layer are taken to be the kept
            ones, which changes no count.
        biased: groups whose removed units leave a bias on the modules that read them (FLAP).

    Raises:
        SnapfitError: the plan cannot be carried out: it factors a layer that is merged, narrows
            blocks of factors, or has a rank above the narrowed dimensions.

    """
    decided = _decided(space, sizes)
    layers, absent = _depth(space, decided, sizes, schedule)
    experts = {g.name: _kept(g, sizes[g.name], orders) for g in decided if g.kind == "experts"}
    names = Names(path=layers_path(space), layers=layers, experts=experts, absent=absent)
    dimensions = _dimensions(space)
    modules = {
        new: _layout(dimensions[module], parts, sizes, biased)
        for module, parts in _by_module(decided).items()
        if (new := names.output(module)) is not None
    }
    _refuse_merged_factors(decided, layers, absent)
    heads, vectors = {}, {}
    for group in decided:
        if group.kind == "kv_heads" and (new := names.output(group.name)) is not None:
            total = space.frame.heads if space.frame is not None else group.full
            heads[new] = (total * sizes[group.name] // group.full, sizes[group.name])
        for vector in group.vectors:
            if (new := names.output(vector.name)) is not None:
                vectors[new] = vector.length * sizes[group.name] // group.full
    return Structure(
        modules=modules,
        absent={new: p for old, p in absent.items() if (new := names.output(old, gone=True))},
        heads=heads,
        experts={new: len(kept) for old, kept in experts.items() if (new := names.output(old))},
        vectors=vectors,
        layers=() if layers == untouched_layers(space) else layers,
        unfused=any(EXPERT.match(matrix.name) for g in space.groups for matrix in g.matrices),
    )


def cuts_of(space: Space, sizes: Mapping[str, int], orders: Orders) -> Cuts:
    """What is kept of every tensor that a plan cuts.

    Args:
        space: as for `structure_of`.
        sizes: the chosen sizes.
        orders: of every group of another kind than rank and depth that is smaller than full.

    Raises:
        SnapfitError: an order is missing or is no permutation of the group's units.

    """
    outs: dict[str, list[tuple[Matrix, Index]]] = {}
    cols: dict[str, Index] = {}
    entries: dict[str, Index] = {}
    experts: dict[str, Index] = {}
    for group in _decided(space, sizes):
        if group.kind in {"rank", "depth"} or sizes[group.name] == 0:
            continue
        if group.name not in orders:
            raise SnapfitError(f"{group.name} is cut, but its units have no order; rerun the job")
        kept = _kept(group, sizes[group.name], orders)
        if group.kind == "experts":
            experts[group.name] = kept
        for matrix in group.matrices:
            if matrix.axis == "in":
                cols[matrix.name] = _features(kept, matrix.features, group.full)
            elif matrix.axis == "out":
                chosen = matrix.start + _features(kept, matrix.features, group.full)
                outs.setdefault(matrix.name, []).append((matrix, chosen))
        for vector in group.vectors:
            entries[vector.name] = _features(kept, vector.length, group.full)
    dimensions = _dimensions(space)
    rows = {name: _rows(parts, dimensions[name][0]) for name, parts in outs.items()}
    return Cuts(rows=rows, cols=cols, entries=entries, experts=experts)


def _decided(space: Space, sizes: Mapping[str, int]) -> list[Group]:
    return [group for group in space.groups if sizes.get(group.name, group.full) < group.full]


def _depth(
    space: Space, decided: Sequence[Group], sizes: Mapping[str, int], schedule: Schedule | None
) -> tuple[tuple[Combination, ...], dict[str, SubLayer]]:
    """The output layers, and the sub-layers that are gone; a layer without both is dropped."""
    layers = untouched_layers(space)
    absent: dict[str, SubLayer] = {}
    for group in decided:
        size = sizes[group.name]
        if group.kind == "depth":
            if schedule is None:
                raise SnapfitError("the plan drops layers, but the method has no schedule of them")
            if schedule.part == "layer":
                layers = schedule.at(size).layers
            else:
                absent |= dict.fromkeys(schedule.at(size).removed, schedule.part)
        elif size == 0:
            for name in _modules_of(group):
                absent[name] = "attention" if group.kind == "kv_heads" else "mlp"
    path = layers_path(space)
    parts: dict[int, set[SubLayer]] = {}
    for name, part in absent.items():
        inner = name.removeprefix(f"{path}.")
        if not EXPERT.match(name):
            parts.setdefault(int(inner.partition(".")[0]), set()).add(part)
    empty = {index for index, found in parts.items() if len(found) == 2}
    return tuple(layer for layer in layers if layer[0][0] not in empty), absent


def _modules_of(group: Group) -> list[str]:
    """The module that a group's matrices lie in, or, where there is none, their own names."""
    inside = all(matrix.name.startswith(f"{group.name}.") for matrix in group.matrices)
    return [group.name] if inside else [matrix.name for matrix in group.matrices]


def _by_module(decided: Sequence[Group]) -> dict[str, list[Part]]:
    modules: dict[str, list[Part]] = {}
    for group in decided:
        for matrix in group.matrices:
            if matrix.axis != "whole" and group.kind != "depth":
                modules.setdefault(matrix.name, []).append((group, matrix))
    return modules


def _layout(
    dimensions: tuple[int, int],
    parts: Sequence[Part],
    sizes: Mapping[str, int],
    biased: Collection[str],
) -> ModuleLayout:
    name = parts[0][1].name
    rows, inputs = dimensions
    outputs, bias = rows, False
    ranks: list[tuple[int, int, int]] = []
    for group, matrix in parts:
        size = sizes[group.name]
        if matrix.axis == "rank":
            ranks.append((matrix.start, matrix.rows, size))
        elif matrix.axis == "in":
            inputs -= matrix.cols - matrix.cols * size // group.full
            bias |= group.name in biased
        else:
            outputs -= matrix.rows - matrix.rows * size // group.full
    if not ranks or outputs == rows:
        blocks = _fill(sorted(ranks), outputs)
    elif len(ranks) == 1 and ranks[0][1] == rows:
        blocks = (Block(rows=outputs, rank=ranks[0][2]),)
    else:
        raise SnapfitError(f"{name} is both narrowed and factored in blocks; choose one of them")
    for block in blocks:
        if block.rank is not None and block.rank > min(block.rows, inputs):
            raise SnapfitError(
                f"{name} has rank {block.rank}, more than its {block.rows} x {inputs} narrowed "
                "matrix can have; leave it dense"
            )
    return ModuleLayout(inputs=inputs, blocks=blocks, bias=bias)


def _dimensions(space: Space) -> dict[str, tuple[int, int]]:
    """(rows, cols) of every module, from all matrices that lie in it."""
    found: dict[str, tuple[int, int]] = {}
    for group in space.groups:
        for matrix in group.matrices:
            rows, _ = found.get(matrix.name, (0, 0))
            found[matrix.name] = max(rows, matrix.start + matrix.rows), matrix.cols
    return found


def _fill(parts: Sequence[tuple[int, int, int]], rows: int) -> tuple[Block, ...]:
    """Blocks covering all `rows`: the factored parts in order, dense blocks between them."""
    blocks, end = [], 0
    for start, count, rank in parts:
        if start > end:
            blocks.append(Block(rows=start - end, rank=None))
        blocks.append(Block(rows=count, rank=rank))
        end = start + count
    if end < rows:
        blocks.append(Block(rows=rows - end, rank=None))
    return tuple(blocks)


def _refuse_merged_factors(
    decided: Sequence[Group], layers: Sequence[Combination], absent: Mapping[str, SubLayer]
) -> None:
    merged = {layer[0][0] for layer in layers if not is_untouched(layer)}
    for group in decided:
        gone = any(f"{group.name}.".startswith(f"{part}.") for part in absent)
        if group.kind == "rank" and group.layer in merged and not gone:
            raise SnapfitError(f"{group.name} is part of a merged layer, so it cannot be factored")


def _kept(group: Group, size: int, orders: Orders | None) -> Index:
    """The kept units, ascending."""
    order = np.arange(group.full) if orders is None else orders.get(group.name)
    if order is None:
        order = np.arange(group.full)
    if not np.array_equal(np.sort(order), np.arange(group.full)):
        raise SnapfitError(
            f"the order of {group.name} does not list its {group.full} units once each; delete "
            "the work folder"
        )
    return np.sort(np.asarray(order[:size], dtype=np.int64))


def _features(kept: Index, features: int, full: int) -> Index:
    """Rows, columns or entries of the kept units."""
    each = features // full
    return (kept[:, None] * each + np.arange(each)).reshape(-1)


def _rows(parts: Sequence[tuple[Matrix, Index]], rows: int) -> Index:
    """Kept rows of a module; rows that no group decides about are kept."""
    keep = np.ones(rows, dtype=bool)
    for matrix, chosen in parts:
        keep[matrix.start : matrix.start + matrix.rows] = False
        keep[chosen] = True
    return np.flatnonzero(keep)
