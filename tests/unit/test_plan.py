"""Plans: a file from a stranger is believed in nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from helpers import heads_group, mlp_group, small_space

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.layout import MAX_DIMENSION
from snapfit.core.plan import Plan, alignment, check_name

SPACE = small_space(1)
RULE = {"axis": "rank", "multiple": 8, "source": "s", "measured": False, "penalty": None}
SIZES = {group.name: group.full for group in SPACE.groups} | {"model.layers.0.q_proj": 8}


def make(**changes: Any) -> Plan:
    plan = Plan(
        model="toy",
        revision="abc123",
        architecture="llama",
        method="kfac",
        objective="curve",
        sizes=SIZES,
        budget={"of": "linear", "ratio": 0.2, "params": 1000},
        predicted={"loss": 0.5, "unit": "nats", "params": 990},
        reasons={"model.layers.0.q_proj": "least total loss"},
        rules=(AlignRule(axis="rank", multiple=8, source="--align 8"),),
        digests={"space": "00ff"},
        seed=3,
        version="0.1.0",
    )
    return dataclasses.replace(plan, **changes)


def test_json_round_trip() -> None:
    plan = make()
    data = json.loads(json.dumps(plan.to_json()))
    assert next(iter(data)) == "schema"
    assert Plan.from_json(data) == plan
    assert Plan.from_json(data).digest == plan.digest


def test_a_rule_with_a_penalty_survives() -> None:
    data = make().to_json() | {"rules": [RULE | {"penalty": 1.12}]}
    assert Plan.from_json(data).rules[0].penalty == 1.12


def test_digest_follows_content() -> None:
    assert make().digest == make().digest
    assert make().digest != make(seed=4).digest


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.up_proj", "lm_head", "model.layers.11.self_attn.k_proj#k:0-64"],
)
def test_module_names_are_accepted(name: str) -> None:
    check_name(name)
    plan = Plan.from_json(make(sizes={name: 4}, reasons={}).to_json())
    assert plan.sizes == {name: 4}


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "../x", "a/b", "a..b", ".a", "a.", "..", "a\\b", "a b", "a\n", "a\0",
        "a#k:0", "a#k:0-64/x", "a#../b:0-1", "a#k:0-64#k:0-64", "C:x", "é", "x" * 5000,
    ],
)  # fmt: skip
def test_paths_are_not_names(name: str) -> None:
    data = make(reasons={}).to_json() | {"sizes": {name: 4}}
    with pytest.raises(CorruptFile, match=r"not a module name|not a short text"):
        Plan.from_json(data)
    with pytest.raises(CorruptFile, match="not a module name"):
        check_name(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "schema 2, this snapfit reads 1"),
        ({"schema": True}, "schema True"),
        ({"schema": None}, "schema None"),
        ({"extra": 1}, "unknown fields: 'extra'"),
        ({"model": 5}, "model must be a short text"),
        ({"model": "x" * 5000}, "model must be a short text"),
        ({"method": "../../x"}, "method '../../x' is not a plain name"),
        ({"objective": ""}, "objective '' is not a plain name"),
        ({"sizes": []}, "sizes must be a table"),
        ({"sizes": {}}, "decides nothing"),
        ({"sizes": {"a": -3}}, "the size -3"),
        ({"sizes": {"a": 2.0}}, "the size 2.0"),
        ({"sizes": {"a": True}}, "the size True"),
        ({"sizes": {"a": "8"}}, "the size '8'"),
        ({"sizes": {"a": MAX_DIMENSION + 1}}, "whole numbers from 0 to"),
        ({"reasons": {"nobody": "why"}}, "reason for 'nobody', which has no size"),
        ({"reasons": {"model.layers.0.q_proj": 3}}, "must be a short text"),
        ({"budget": 5}, "budget must be a table"),
        ({"budget": {"ratio": [1]}}, "must be a number or a text"),
        ({"predicted": {"loss": float("nan")}}, "must be a number or a text"),
        ({"budget": {"params": 10**400}}, "must be a number or a text"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"digests": {"space": 5}}, "must be a short text"),
        ({"rules": {}}, "rules must be a list"),
        ({"rules": [5]}, "rule must be a table"),
        ({"rules": [{}]}, "malformed rule"),
        ({"rules": [RULE | {"axis": "up"}]}, "malformed rule"),
        ({"rules": [RULE | {"multiple": 0}]}, "malformed rule"),
        ({"rules": [RULE | {"measured": "yes"}]}, "malformed rule"),
        ({"rules": [RULE | {"penalty": 0}]}, "malformed rule"),
        ({"rules": [RULE | {"penalty": "much"}]}, "malformed rule"),
        ({"rules": [RULE | {"penalty": True}]}, "malformed rule"),
        ({"rules": [RULE | {"penalty": 10**400}]}, "malformed rule"),
    ],
)
def test_malformed_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        Plan.from_json({**make(reasons={}).to_json(), **changes})


@pytest.mark.parametrize("field", ["model", "revision", "sizes", "budget", "predicted", "method"])
def test_missing_fields_are_named(field: str) -> None:
    data = make().to_json()
    del data[field]
    with pytest.raises(CorruptFile, match=f"lacks fields: {field}"):
        Plan.from_json(data)


def test_something_else_is_not_a_plan() -> None:
    with pytest.raises(CorruptFile, match="not a plan"):
        Plan.from_json([1, 2])


def test_check_accepts_its_own_space() -> None:
    plan = make()
    plan.check(SPACE)
    assert SPACE.params(dict(plan.sizes)) < SPACE.dense_params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "other"}, "made for revision other, toy is abc123"),
        ({"sizes": SIZES | {"model.layers.9.q_proj": 8}}, "layers.9.q_proj, which toy does not"),
        (
            {"sizes": SIZES | {"model.layers.0.q_proj": 49}},
            "the size 49; it can have 1 to 23, or 48",
        ),
        ({"sizes": SIZES | {"model.layers.0.q_proj": 24}}, "the size 24; it can have 1 to 23, or"),
        ({"sizes": SIZES | {"model.layers.0.q_proj": 0}}, "the size 0; it can have 1 to 23, or 48"),
        ({"sizes": {"model.layers.0.q_proj": 8}}, r"no size for model.layers.0.k_proj \(3 miss"),
    ],
)
def test_check_refuses_another_model(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SnapfitError, match=message):
        make(**changes).check(SPACE)


def test_check_holds_ties() -> None:
    tied = dataclasses.replace(SPACE, ties=(("model.layers.0.q_proj", "model.layers.0.up_proj"),))
    with pytest.raises(SnapfitError, match="tied groups unequal sizes"):
        make().check(tied)


def test_diff_is_readable() -> None:
    plan = make()
    other = make(seed=4, sizes=SIZES | {"model.layers.0.q_proj": 16})
    assert plan.diff(plan) == []
    assert plan.diff(other) == ["seed: 3 -> 4", "model.layers.0.q_proj: 8 -> 16"]
    fewer = make(sizes={"model.layers.0.q_proj": 8})
    assert "model.layers.0.k_proj: 16 -> absent" in plan.diff(fewer)
    assert "model.layers.0.k_proj: absent -> 16" in fewer.diff(plan)
    removed = make(sizes={"l.mlp": 0}, reasons={})
    assert removed.diff(make(sizes={"l.mlp": 12}, reasons={})) == ["l.mlp: 0 -> 12"]


def test_alignment_counts_chosen_sizes_and_dense_dimensions() -> None:
    assert alignment(SPACE, {}, 16) == 1.0
    assert alignment(SPACE, {}, 32) == 0.0  # 48 is no multiple of 32
    assert alignment(SPACE, SIZES, 8) == 1.0
    assert alignment(SPACE, SIZES, 16) == 0.75
    assert alignment(SPACE, SIZES | {"model.layers.0.q_proj": 7}, 8) == 0.75


def test_alignment_of_what_is_left() -> None:
    groups = (mlp_group(hidden=16, channels=48), heads_group(hidden=16, kv_heads=4, head_dim=8))
    space = dataclasses.replace(SPACE, groups=groups)
    assert alignment(space, {}, 16) == 1.0
    # Gate, up and down have 24 channels each; keys and values have 24 features, queries 48.
    sizes = {"l.mlp": 24, "l.self_attn": 3}
    assert alignment(space, sizes, 8) == 1.0
    assert alignment(space, sizes, 16) == 2 / 7


def test_what_is_removed_is_not_misaligned() -> None:
    space = dataclasses.replace(SPACE, groups=(mlp_group(hidden=16, channels=10, least=0),))
    assert alignment(space, {"l.mlp": 5}, 4) == 0.0
    assert alignment(space, {"l.mlp": 0}, 4) == 0.0
    assert alignment(space, {"l.mlp": 8}, 4) == 1.0
