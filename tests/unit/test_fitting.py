"""A space that a format can hold: what is dropped, tied, or not chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import heads_group, mlp_group, rank_group

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.errors import UsageError
from snapfit.core.fitting import FormatRule, for_format, format_rules
from snapfit.core.objectives import choose
from snapfit.core.space import Frame, Space


def space(*groups, architecture="llama", frame=None):
    return Space(
        model="m",
        revision="r",
        architecture=architecture,
        groups=groups,
        total_params=10_000,
        kv_elements=64,
        frame=frame,
    )


def layers():
    return [replace(mlp_group(least=0), name=f"model.layers.{i}.mlp", layer=i) for i in range(3)]


def test_factored_holds_everything_as_it_is() -> None:
    given = space(*layers(), rank_group("model.layers.0.x", 8, 8))
    assert for_format("factored", given) == given


def test_stock_ties_all_widths_and_keeps_every_part() -> None:
    fitted = for_format("stock", space(*layers()))
    assert fitted.ties == (tuple(group.name for group in fitted.groups),)
    assert {group.least for group in fitted.groups} == {1}


def test_decilm_leaves_widths_free_and_parts_removable() -> None:
    fitted = for_format("decilm", space(*layers()))
    assert fitted.ties == ()
    assert {group.least for group in fitted.groups} == {0}
    with pytest.raises(UsageError, match="Llama-like models only, not gpt_neox"):
        for_format("decilm", space(*layers(), architecture="gpt_neox"))


def test_a_method_that_only_factors_has_nothing_to_put_into_stock() -> None:
    given = space(rank_group("model.layers.0.x", 8, 8))
    with pytest.raises(UsageError, match=r"stock cannot hold .* --format factored or standalone"):
        for_format("stock", given)
    assert for_format("folded", given).groups == given.groups


def test_heads_that_a_configuration_refuses_are_no_size() -> None:
    frame = Frame(hidden=32, vocab=64, layers=1, heads=8, kv_heads=4, head_dim=4)
    group = heads_group(hidden=32, kv_heads=4, queries=2, head_dim=4)
    given = space(group, frame=frame)
    (rule,) = format_rules("decilm", given)
    # DeciLM's configuration wants the hidden size to be a multiple of the heads: 2, 4, not 6.
    assert legal_sizes(group, (rule,)).tolist() == [1, 2, 4]
    other = replace(given, architecture="gpt_neox")
    assert legal_sizes(group, format_rules("stock", other)).tolist() == [4]


def test_a_format_binds_unaligned_plans_too() -> None:
    frame = Frame(hidden=32, vocab=64, layers=1, heads=8, kv_heads=4, head_dim=4)
    group = heads_group(hidden=32, kv_heads=4, queries=2, head_dim=4)
    given = space(group, frame=frame)
    rules = (AlignRule(axis="heads", multiple=4, source="test"), *format_rules("decilm", given))
    choice = choose(
        "none", given, budget=given.dense_params, rules=rules, unaligned={group.name: 3.4}
    )
    assert choice.sizes == {group.name: 2}, "not 3, which the format refuses; not 4, above"


def test_there_is_no_rule_where_no_size_is_a_count() -> None:
    assert format_rules("stock", space(rank_group("x", 8, 8))) == ()
    rule = FormatRule(axis="width", multiple=1, source="s", name="stock", space=space(*layers()))
    assert rule.plain() == AlignRule(axis="width", multiple=1, source="s")
    assert rule.allows(layers()[0], np.array([3, 5])).all()
