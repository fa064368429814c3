"""Every width method on every architecture: each group is ordered, in nats, and allocated."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import stream_of, tokens_for
from tiny_models import ALL, BY_INSPECTION, LAYERS, MOE

from snapfit.calib.collect import collect
from snapfit.core.curve import NATS
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.objectives import choose
from snapfit.methods._lowrank import COMPARABLE_NEEDS
from snapfit.methods._stage import MODULE_PROXIES
from snapfit.methods._width_stage import importance, order_width_layer, width_modules
from snapfit.methods.base import Allocation
from snapfit.methods.registry import load_method
from snapfit.models.describe import describe, open_model
from snapfit.models.weights import open_weights
from snapfit.nn.ordered import OrderedStore

METHODS = ("llm-pruner", "minitron", "flap")


@cache
def ordered(architecture: str, folder: Path, method_name: str, parts: str):
    """(method, restricted space, curves, summaries, importance) after ordering every layer."""
    source = open_model(folder)
    method = load_method(method_name, {"parts": parts})
    space = method.restrict(describe(source, name="x"), {})
    store = OrderedStore(folder.parent / f"ordered-{architecture}-{method_name}-{parts}")
    statistics = collected(folder)
    reader = open_weights(source)
    curves, summaries = {}, {}
    for layer in range(LAYERS):
        groups = [group for group in space.groups if group.layer == layer]
        items, facts = order_width_layer(method, groups, reader.get, statistics.layer(layer))
        assert list(items) == [group.name for group in groups]
        store.write(layer, items, facts, torch.float32)
        curves |= store.read(layer).curves
        summaries |= store.read(layer).summaries
    return method, space, curves, summaries, importance(store, space.groups), store


@cache
def collected(folder: Path):
    needs = {"taylor", "activation_mean", "head_norm", "fluctuation", "routing"}
    needs |= COMPARABLE_NEEDS | set(MODULE_PROXIES)
    groups = describe(open_model(folder), name="x").of_kind("width", "kv_heads", "experts").groups
    return collect(
        stream_of(folder),
        tokens_for(),
        needs,
        folder.parent / f"stats-{folder.name}",
        revision="r",
        modules=width_modules(groups),
    )


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_orders_every_group(tiny, name, architecture):
    for parts in ("mlp,heads", "heads,experts"):
        if parts == "heads,experts" and architecture not in MOE:
            continue
        method, space, curves, summaries, scores, store = ordered(
            architecture, tiny(architecture), name, parts
        )
        kinds = {group.kind for group in space.groups}
        assert kinds == ({"kv_heads", "experts"} if "experts" in parts else {"width", "kv_heads"})
        for group in space.groups:
            order = store.tensor(group.layer, group.name, "order")
            assert order.dtype == torch.int64
            assert sorted(order.tolist()) == list(range(group.full))
            assert np.all(np.diff(scores[group.name]) <= 0)
            curve = curves[group.name]
            assert curve.unit == NATS
            assert curve.sizes.tolist() == list(range(group.full + 1))
            assert curve.losses[-1] == 0 < curve.losses[0]
            facts = summaries[group.name]
            assert {f"score.{p}" for p in ("magnitude", *MODULE_PROXIES)} <= facts.keys()
            assert all(value >= 0 for value in facts.values())
            mean = store.tensor(group.layer, group.name, "mean")
            assert (mean is not None) == (name == "flap" and group.kind != "experts")
        budget = int(0.8 * space.dense_params)
        request = Allocation(
            space=space,
            curves=curves,
            summaries=summaries,
            budget=budget,
            perplexity=lambda *_: 0.0,
            importance=scores,
        )
        sizes = method.allocate(request)
        spent = sum(g.dense_params * sizes[g.name] / g.full for g in space.groups)
        assert spent == pytest.approx(budget, rel=1e-6)
        assert all(group.least <= sizes[group.name] <= group.full for group in space.groups)
        for objective in ("curve", "gac", "none"):
            choice = choose(
                objective,
                space,
                budget=budget,
                curves=curves,
                unaligned=sizes,
                scores={name: facts["score.fisher"] for name, facts in summaries.items()},
            )
            assert choice.params <= budget


def test_widths_of_experts_are_left_alone_where_whole_experts_go(tiny):
    space = describe(open_model(tiny("qwen3_moe")), name="x")
    method = load_method("minitron", {"parts": "mlp, experts"})
    names = [group.name for group in method.restrict(space, {}).groups]
    assert names == [
        "model.layers.1.mlp",
        "model.layers.0.mlp.experts",
        "model.layers.2.mlp.experts",
    ]
    assert method.needs == {"activation_mean", "head_norm", "routing"}


def test_a_part_that_is_unknown_or_absent_is_refused(tiny):
    with pytest.raises(UsageError, match=r"cannot hold 'mpl'; it may hold mlp, heads, experts"):
        load_method("flap", {"parts": "mpl"})
    space = describe(open_model(tiny("llama")), name="x")
    with pytest.raises(SnapfitError, match="'llama' has no experts that snapfit can make smaller"):
        load_method("flap", {"parts": "experts"}).restrict(space, {})


@pytest.mark.parametrize("architecture", BY_INSPECTION)
def test_plans_may_remove_a_part_where_the_group_allows_it(tiny, architecture):
    _, space, curves, *_ = ordered(architecture, tiny(architecture), "minitron", "mlp,heads")
    group = replace(space.groups[0], least=0)
    assert group.params(0) == 0
    assert curves[group.name].at(0) >= curves[group.name].at(1)
