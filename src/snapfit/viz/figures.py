"""The pictures of a compression: what was kept, and what it is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from snapfit.core.curve import Curve
from snapfit.core.plan import Plan
from snapfit.core.space import Group, Space
from snapfit.viz.canvas import INK, STYLES, canvas, svg

_LABELLED_LAYERS = 40
"""Cells of more layers than this are too narrow for a number."""


def sizes_picture(space: Space, plan: Plan) -> str:
    """Heat map over layers and roles: the share of parameters kept, the chosen size written in.

    Several groups of one role in a layer (experts, head groups) share a cell: their total share
    and mean size are shown.
    """
    roles = list(dict.fromkeys(group.role for group in space.groups))
    layers = sorted({group.layer for group in space.groups})
    cells: dict[tuple[int, int], list[Group]] = {}
    for group in space.groups:
        key = (roles.index(group.role), layers.index(group.layer))
        cells.setdefault(key, []).append(group)
    kept_RL = np.full((len(roles), len(layers)), np.nan)
    for (row, column), groups in cells.items():
        kept = sum(group.params(plan.sizes.get(group.name, group.full)) for group in groups)
        kept_RL[row, column] = kept / sum(group.dense_params for group in groups)

    figure, axes = canvas(9.5, 0.9 + 0.42 * len(roles))
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(kept_RL),
        vmin=0,
        vmax=1,
        cmap="cividis",
        edgecolors=INK,
        linewidth=0.3,
    )
    if len(layers) <= _LABELLED_LAYERS:
        for (row, column), groups in cells.items():
            dark = kept_RL[row, column] < 0.55
            axes.text(
                column + 0.5,
                row + 0.5,
                _cell_text(groups, plan),
                ha="center",
                va="center",
                fontsize=min(8.0, 220 / max(1, len(layers))),
                color="#ffffff" if dark else "#000000",
            )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(roles)) + 0.5, roles)
    every = max(1, len(layers) // 16)
    axes.set_xticks(np.arange(0, len(layers), every) + 0.5, [str(i) for i in layers[::every]])
    axes.set_xlabel("decoder layer")
    axes.tick_params(length=0)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=12)
    bar.set_label("parameters kept")
    bar.outline.set_edgecolor(INK)
    return svg(figure, "sizes", "Size of every group and the share of its parameters kept")


def curves_picture(space: Space, plan: Plan, curves: Mapping[str, Curve]) -> str:
    """Loss curves of a few groups, the chosen size marked: of each role the costliest group.

    Where there are more roles than styles of a line, those that cost least are left out.
    """
    costliest: dict[str, tuple[float, Group]] = {}
    for group in space.groups:
        loss = float(curves[group.name].at(plan.sizes.get(group.name, group.full)))
        if group.role not in costliest or loss > costliest[group.role][0]:
            costliest[group.role] = (loss, group)
    drawn = sorted(costliest, key=lambda role: -costliest[role][0])[: len(STYLES)]
    chosen = [group for role, (_, group) in costliest.items() if role in drawn]
    figure, axes = canvas(9.5, 4.0)
    for (colour, dash, marker), group in zip(STYLES, chosen, strict=False):
        curve = curves[group.name]
        legal = (curve.sizes >= group.least) & (curve.sizes < group.full)
        sizes = curve.sizes[legal & (curve.losses > 0)]
        if not len(sizes):
            continue
        share = np.array([group.params(int(size)) for size in sizes]) / group.dense_params
        label = f"{group.role}, layer {group.layer}"
        axes.plot(share, curve.at(sizes), dash, color=colour, linewidth=1.6, label=label)
        size = plan.sizes.get(group.name, group.full)
        if size < group.full:
            place = group.params(size) / group.dense_params
            axes.plot([place], [float(curve.at(size))], marker, color=colour, markersize=8)
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the matrix's parameters kept (mark: the chosen size)")
    unit = next(iter(curves.values())).unit
    axes.set_ylabel(f"predicted loss ({unit})")
    axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=2)
    return svg(figure, "curves", "Loss curves of the costliest group of each role")


def _cell_text(groups: list[Group], plan: Plan) -> str:
    sizes = [plan.sizes.get(group.name, group.full) for group in groups]
    if all(size == group.full for size, group in zip(sizes, groups, strict=True)):
        return "="
    return str(round(sum(sizes) / len(sizes)))
