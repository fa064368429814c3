"""A model small enough to count by hand, and a timer with waves, tiers and a launch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from snapfit.core.errors import SnapfitError
from snapfit.core.operators import Attention, Elementwise, Estimate, Launch, Linear, Operator
from snapfit.core.space import Frame, Group, Matrix, Space

HIDDEN, WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 640, 8, 4, 32, 1000
MATRICES = {
    "self_attn.q_proj": ("q", HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": ("k", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": ("v", KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": ("o", HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": ("gate", WIDTH, HIDDEN),
    "mlp.up_proj": ("up", WIDTH, HIDDEN),
    "mlp.down_proj": ("down", HIDDEN, WIDTH),
}


@dataclass
class WaveTimer:
    """Tiles of 64 x 64 in waves of 8; odd sizes cost double. Counts what it was asked."""

    device: str = "toy"
    dtype: str = "float16"
    launch: float | None = 2.0
    spread: float = 0.05
    source: str = "model"
    asked: list[Operator] = field(default_factory=list)

    def time(self, operator: Operator) -> Estimate:
        self.asked.append(operator)
        if isinstance(operator, Launch):
            if self.launch is None:
                raise SnapfitError("no launch is known")
            return self._estimate(self.launch)
        if isinstance(operator, Linear):
            tiles = math.ceil(operator.m / 64) * math.ceil(operator.n / 64)
            odd = 2.0 if operator.n % 8 or operator.k % 8 else 1.0
            return self._estimate(odd * math.ceil(tiles / 8) * operator.k / 20)
        if isinstance(operator, Attention):
            return self._estimate(operator.flops / 1e6)
        assert isinstance(operator, Elementwise)
        return self._estimate(operator.elements / 1e5)

    def _estimate(self, microseconds: float) -> Estimate:
        return Estimate(
            microseconds=microseconds, spread=self.spread, source=self.source, how="toy"
        )


def llama(layers: int = 2, *, kinds: tuple[str, ...] = ("rank",)) -> Space:
    """A Llama-like space with groups of the given kinds."""
    groups: list[Group] = []
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for suffix, (role, rows, cols) in MATRICES.items():
            matrix = Matrix(name=f"{prefix}.{suffix}", axis="rank", rows=rows, cols=cols)
            groups.append(
                Group(
                    name=matrix.name,
                    kind="rank",
                    matrices=(matrix,),
                    full=min(rows, cols),
                    role=role,
                    layer=layer,
                )
            )
    groups += [_part(layer, "mlp", "width", WIDTH) for layer in range(layers)]
    groups += [_part(layer, "self_attn", "kv_heads", KV_HEADS) for layer in range(layers)]
    whole = sum(rows * cols for _, rows, cols in MATRICES.values())
    groups.append(
        Group(
            name="model.layers",
            kind="depth",
            matrices=tuple(m for g in groups if g.kind == "rank" for m in g.matrices),
            full=layers,
            role="depth",
            layer=0,
            least=0,
            steps=tuple(whole * count for count in range(layers + 1)),
        )
    )
    return Space(
        model="toy",
        revision="abc123",
        architecture="llama",
        groups=tuple(group for group in groups if group.kind in kinds),
        total_params=layers * whole + 2 * VOCAB * HIDDEN,
        kv_elements=layers * 2 * KV_HEADS * HEAD_DIM,
        frame=Frame(
            hidden=HIDDEN,
            vocab=VOCAB,
            layers=layers,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
        ),
    )


def whole_llama(layers: int = 2) -> Space:
    """The same with groups of every kind."""
    return llama(layers, kinds=("rank", "width", "kv_heads", "depth"))


def key_blocks(rows: int) -> tuple[Group, ...]:
    """Rank groups of the keys of the first layer, one for every block of so many rows."""
    name = "model.layers.0.self_attn.k_proj"
    return tuple(
        Group(
            name=f"{name}#k:{start}-{start + rows}",
            kind="rank",
            matrices=(Matrix(name=name, axis="rank", rows=rows, cols=HIDDEN, start=start),),
            full=rows,
            role="k",
            layer=0,
        )
        for start in range(0, KV_HEADS * HEAD_DIM, rows)
    )


def _part(layer: int, part: str, kind: str, full: int) -> Group:
    inward = {"o", "down"}
    matrices = tuple(
        Matrix(
            name=f"model.layers.{layer}.{suffix}",
            axis="in" if role in inward else "out",
            rows=rows,
            cols=cols,
        )
        for suffix, (role, rows, cols) in MATRICES.items()
        if suffix.startswith(part)
    )
    return Group(
        name=f"model.layers.{layer}.{part}",
        kind=kind,
        matrices=matrices,
        full=full,
        role="mlp" if kind == "width" else "attention",
        layer=layer,
        least=0,
    )
