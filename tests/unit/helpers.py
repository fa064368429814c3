"""Small spaces for the core tests: no model, no torch."""

from __future__ import annotations

import numpy as np

from snapfit.core.cost import group_params
from snapfit.core.curve import NATS, Curve
from snapfit.core.knapsack import Item
from snapfit.core.space import Group, Matrix, Space

SHAPES = {"q": (48, 48), "k": (16, 48), "up": (96, 48), "down": (48, 96)}


def rank_group(name: str, rows: int, cols: int, *, role: str = "other", layer: int = 0) -> Group:
    matrix = Matrix(name=name, axis="rank", rows=rows, cols=cols)
    return Group(
        name=name, kind="rank", matrices=(matrix,), full=min(rows, cols), role=role, layer=layer
    )


def mlp_group(hidden: int = 8, channels: int = 12, *, least: int = 1) -> Group:
    matrices = tuple(
        Matrix(name=f"l.mlp.{name}", axis="out", rows=channels, cols=hidden)
        for name in ("gate_proj", "up_proj")
    )
    down = Matrix(name="l.mlp.down_proj", axis="in", rows=hidden, cols=channels)
    return Group(
        name="l.mlp",
        kind="width",
        matrices=(*matrices, down),
        full=channels,
        role="mlp",
        layer=0,
        least=least,
    )


def heads_group(
    hidden: int = 32, kv_heads: int = 4, queries: int = 2, head_dim: int = 6, *, least: int = 1
) -> Group:
    rows = {"q": kv_heads * queries * head_dim, "k": kv_heads * head_dim, "v": kv_heads * head_dim}
    matrices = tuple(
        Matrix(name=f"l.self_attn.{role}_proj", axis="out", rows=count, cols=hidden)
        for role, count in rows.items()
    )
    output = Matrix(name="l.self_attn.o_proj", axis="in", rows=hidden, cols=rows["q"])
    return Group(
        name="l.self_attn",
        kind="kv_heads",
        matrices=(*matrices, output),
        full=kv_heads,
        role="attention",
        layer=0,
        least=least,
    )


def depth_group(steps: tuple[int, ...] = (0, 10, 30, 40)) -> Group:
    whole = Matrix(name="l", axis="whole", rows=1, cols=steps[-1])
    return Group(
        name="l",
        kind="depth",
        matrices=(whole,),
        full=len(steps) - 1,
        role="depth",
        layer=0,
        steps=steps,
    )


def small_space(layers: int = 3, ties: tuple[tuple[str, ...], ...] = ()) -> Space:
    groups = tuple(
        rank_group(f"model.layers.{layer}.{role}_proj", rows, cols, role=role, layer=layer)
        for layer in range(layers)
        for role, (rows, cols) in SHAPES.items()
    )
    dense = sum(group.dense_params for group in groups)
    return Space(
        model="toy",
        revision="abc123",
        architecture="llama",
        groups=groups,
        ties=ties,
        total_params=dense + 1000,
        kv_elements=64,
    )


def decaying_curves(space: Space, seed: int = 0, unit: str = NATS) -> dict[str, Curve]:
    """Tails of exponential spectra: what a low-rank method really hands over."""
    rng = np.random.default_rng(seed)
    curves = {}
    for group in space.groups:
        index = np.arange(group.full)
        values = rng.lognormal() * np.exp(-index / (group.full * rng.uniform(0.1, 0.6)))
        tail = np.append(np.cumsum(values[::-1])[::-1], 0.0)[1:]
        curves[group.name] = Curve(sizes=index + 1, losses=tail, unit=unit)
    return curves


def realistic_items(layers: int, step: int = 1) -> list[Item]:
    space = small_space(layers)
    curves = decaying_curves(space)
    items = []
    for group in space.groups:
        sizes = np.append(np.arange(step, group.break_even + 1, step), group.full)
        items.append(
            Item(
                name=group.name,
                sizes=sizes,
                costs=group_params(group, sizes),
                losses=curves[group.name].at(sizes),
            )
        )
    return items


def projection(rows: int, cols: int, role: str = "q") -> Group:
    return rank_group(f"model.layers.0.{role}_proj", rows, cols, role=role)


def width(channels: int, hidden: int) -> Group:
    return mlp_group(hidden, channels)


def head_group(heads: int, kv_heads: int, head_dim: int, hidden: int) -> Group:
    return heads_group(hidden, kv_heads, heads // kv_heads, head_dim)


def stepped(step: int, limit: int, full: int) -> list[int]:
    return [*range(step, limit + 1, step), full]
