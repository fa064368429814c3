"""Plans that cannot be carried out are refused, with the reason."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from timers import HEAD_DIM, HIDDEN, KV_HEADS, WIDTH, key_blocks, whole_llama

from snapfit.core.combination import collapse, untouched
from snapfit.core.cuts import cuts_of, structure_of
from snapfit.core.errors import SnapfitError
from snapfit.core.schedule import Depth, Schedule

SPACE = whole_llama(3)
KEYS = KV_HEADS * HEAD_DIM
ATTENTION, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
MERGED = Schedule(
    full=3,
    sizes={
        3: Depth(layers=untouched(range(3))),
        2: Depth(layers=collapse(untouched(range(3)), 0, 2)),
    },
    losses={3: 0.0, 2: 1.0},
    unit="nats",
)


def test_a_merged_layer_cannot_be_factored() -> None:
    for layer in (1, 2):  # what is merged into the first, and what stays as it is
        sizes = {"model.layers": 2, f"model.layers.{layer}.mlp.up_proj": 8}
        assert structure_of(SPACE, sizes, schedule=MERGED).layers == MERGED.at(2).layers
    with pytest.raises(SnapfitError, match=r"0\.mlp\.up_proj is part of a merged layer"):
        structure_of(SPACE, {"model.layers": 2, f"{MLP}.up_proj": 8}, schedule=MERGED)
    with pytest.raises(SnapfitError, match="drops layers, but the method has no schedule"):
        structure_of(SPACE, {"model.layers": 2})


def test_a_layer_goes_where_nothing_is_left_of_it() -> None:
    half = structure_of(SPACE, {ATTENTION: 0})
    assert half.absent == {ATTENTION: "attention"}
    assert half.layers == ()
    whole = structure_of(SPACE, {ATTENTION: 0, MLP: 0})
    assert whole.layers == untouched((1, 2))


def test_blocks_of_factors_cannot_be_narrowed() -> None:
    blocks = key_blocks(KEYS // 2)
    heads = SPACE.of_kind("kv_heads")
    space = replace(heads, groups=(*heads.groups, *blocks))
    sizes = {blocks[0].name: 2, ATTENTION: KV_HEADS // 2}
    with pytest.raises(SnapfitError, match=r"k_proj is both narrowed and factored in blocks"):
        structure_of(space, sizes)
    assert len(structure_of(space, {blocks[0].name: 2}).modules) == 1


def test_a_rank_above_what_is_left_is_refused() -> None:
    sizes = {MLP: 4, f"{MLP}.up_proj": 4}
    assert structure_of(SPACE, sizes).ranks
    with pytest.raises(SnapfitError, match=f"rank 5, more than its 4 x {HIDDEN} narrowed matrix"):
        structure_of(SPACE, sizes | {f"{MLP}.up_proj": 5})


def test_units_are_cut_in_a_known_order() -> None:
    with pytest.raises(SnapfitError, match=r"0\.mlp is cut, but its units have no order"):
        cuts_of(SPACE, {MLP: 4}, {})
    for order in (np.arange(WIDTH - 1), np.zeros(WIDTH, dtype=np.int64)):
        with pytest.raises(SnapfitError, match=f"does not list its {WIDTH} units once each"):
            cuts_of(SPACE, {MLP: 4}, {MLP: order})
    kept = cuts_of(SPACE, {MLP: 4}, {MLP: np.arange(WIDTH)[::-1]}).cols[f"{MLP}.down_proj"]
    assert kept.tolist() == [WIDTH - 4, WIDTH - 3, WIDTH - 2, WIDTH - 1]
