"""What a plan makes of a job's model: its structure, and how every tensor comes about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.save import Named
from snapfit.core.cuts import Orders, cuts_of, structure_of
from snapfit.core.formats import require_holds
from snapfit.core.layout import Layouts
from snapfit.core.plan import Plan
from snapfit.core.renaming import layers_path
from snapfit.core.space import Group, Space
from snapfit.pipeline.job import Job
from snapfit.pipeline.refit import Pairs


def format_of(plan: Plan) -> str:
    """The format that a plan was made for."""
    return str(plan.recipe["format"])


def blueprint_of(job: Job, plan: Plan) -> Blueprint:
    """How the compressed model is made.

    Raises:
        UsageError: the plan's format cannot hold it.
        SnapfitError: the plan cannot be carried out, or a file of the work folder is damaged.

    """
    sizes, whole = plan.sizes, _with_own(job)
    cut = [
        group
        for group in job.space.groups
        if group.kind not in {"rank", "depth"} and 0 < sizes[group.name] < group.full
    ]
    orders, means = _orders(job, cut), _means(job, cut)
    structure = structure_of(
        whole, sizes, schedule=job.schedule, orders=orders, biased=means.keys()
    )
    require_holds(format_of(plan), structure, whole)
    return Blueprint(
        structure=structure,
        cuts=cuts_of(whole, sizes, orders),
        means={
            matrix.name: means[group.name]
            for group in cut
            if group.name in means
            for matrix in group.matrices
            if matrix.axis == "in"
        },
        path=layers_path(whole),
    )


def factors_of(job: Job, plan: Plan, blueprint: Blueprint, pairs: Pairs) -> Iterator[Named]:
    """(name, tensor) of every factor, a module at a time, as `FactoredLinear` names them."""
    layouts = blueprint.structure.modules
    parts: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for layer, groups in job.layers.items():
        for group in groups:
            rank, matrix = plan.sizes[group.name], group.matrices[0]
            new = blueprint.output(matrix.name)
            if group.kind == "rank" and rank < group.full and new in layouts:
                a_RN, b_MR = pairs(layer, group.name, rank)
                parts.setdefault(new, []).append((matrix.start, a_RN, b_MR))
        for module in list(parts):
            yield from _named(module, layouts, sorted(parts.pop(module), key=lambda part: part[0]))


def _named(
    module: str, layouts: Layouts, parts: list[tuple[int, Tensor, Tensor]]
) -> Iterator[Named]:
    yield f"{module}.a.weight", torch.cat([a_RN for _, a_RN, _ in parts])
    blocks = layouts[module].blocks
    if len(blocks) == 1:
        yield f"{module}.b.weight", parts[0][2]
        return
    factored = [index for index, block in enumerate(blocks) if block.rank is not None]
    for index, (_, _, b_MR) in zip(factored, parts, strict=True):
        yield f"{module}.b.{index}.weight", b_MR


def _with_own(job: Job) -> Space:
    """The whole space and the groups that the method makes itself, such as heads of a matrix."""
    known = {group.name for group in job.whole.groups}
    own = tuple(group for group in job.space.groups if group.name not in known)
    return replace(job.whole, groups=(*job.whole.groups, *own))


def _orders(job: Job, groups: list[Group]) -> Orders:
    found = {g.name: job.store.tensor(g.layer, g.name, "order") for g in groups}
    return {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}


def _means(job: Job, groups: list[Group]) -> dict[str, Tensor]:
    found = {g.name: job.store.tensor(g.layer, g.name, "mean") for g in groups}
    return {name: tensor for name, tensor in found.items() if tensor is not None}
