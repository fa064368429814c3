"""What a checkpoint says of its own structure, written by a stranger."""

from __future__ import annotations

import json
from typing import Any

import pytest

from snapfit.core.errors import CorruptFile
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.structure import Structure

PAIR = ModuleLayout(inputs=8, blocks=(Block(rows=6, rank=2),), bias=True)


def everything() -> Structure:
    return Structure(
        modules={"m.layers.0.mlp.up": PAIR},
        absent={"m.layers.1.mlp": "mlp"},
        heads={"m.layers.0.attn": (6, 2)},
        experts={"m.layers.2.experts": 3},
        vectors={"m.layers.0.attn.norm.weight": 12},
        layers=(((0, 1.0),), ((1, -1.0), (2, 1.0), (3, 1.0)), ((4, 1.0),)),
        unfused=True,
    )


@pytest.mark.parametrize("structure", [everything(), Structure()], ids=["all", "nothing"])
def test_json_round_trip(structure: Structure) -> None:
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


def test_what_is_asked_of_it() -> None:
    structure = everything()
    assert structure.sources == (0, 1, 4)
    assert structure.ranks
    assert not Structure().ranks
    assert structure.changed == 4
    short = structure.without_prefix("m.")
    assert set(short.modules) == {"layers.0.mlp.up"}
    assert short.layers == structure.layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "unknown entry 'rank'"),
        ({"modules": []}, "'modules' must be a table, found"),
        ({"modules": {"a": 5}}, "expected a table of sizes, found 5"),
        ({"experts": "fused"}, "'experts' must be 'unfused', found 'fused'"),
        ({"absent": {"a": "all"}}, "absent a must be 'attention' or 'mlp', found 'all'"),
        ({"heads": {"a": [4]}}, "heads of a must be two"),
        ({"heads": {"a": [4, 3]}}, "a cannot share 3 key-value heads among 4"),
        ({"heads": {"a": [4, 0]}}, "heads of a must be a positive integer, found 0"),
        ({"expert_counts": {"a": True}}, "expert_counts of a must be a positive integer"),
        ({"vectors": {"a": 10**9}}, "vectors of a must be a positive integer"),
        ({"layers": {"0": 1}}, "'layers' must be a list"),
        ({"layers": [0] * 5000}, "'layers' must be a list"),
        ({"layers": [0, [[1]]]}, "'layers' has a malformed entry"),
        ({"layers": [[[0, 10**400]]]}, "'layers': a coefficient must be a finite number"),
        ({"absent": {"m.layers.0": "mlp"}}, "m.layers.0 is absent, so m.layers.0"),
    ],
)
def test_a_structure_from_a_stranger_is_not_believed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        Structure.from_json({**everything().to_json(), **changes})


def test_modules_are_never_left_out() -> None:
    with pytest.raises(CorruptFile, match="'modules' must be a table, found None"):
        Structure.from_json({})
