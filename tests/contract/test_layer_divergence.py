"""Divergence from kept hidden states is that of the whole variant, on every architecture."""

from __future__ import annotations

import pytest
import torch
from tiny_models import ALL, loaded, sample_ids

from snapfit.core.errors import SnapfitError
from snapfit.evals.divergence import Variant, divergences, log_probabilities, varied
from snapfit.evals.layer_divergence import LayerDivergence
from snapfit.models.describe import family


def a_matrix(model, layers, index):
    prefix = f"{layers}.{index}."
    return next(
        name
        for name, parameter in model.named_parameters()
        if name.startswith(prefix) and parameter.ndim == 2 and "gate.weight" not in name
    )


@pytest.mark.parametrize("architecture", ALL)
def test_running_from_a_layer_on_equals_running_everything(architecture, tiny):
    source, model = loaded(tiny(architecture))
    layers = family(source).layers
    ids_BT = sample_ids(3, 12)
    measure = LayerDivergence(model, layers, ids_BT)
    with torch.no_grad():
        originals = [log_probabilities(model, window_T) for window_T in ids_BT]
    for first in range(3):
        name = a_matrix(model, layers, first)
        # Not a multiple of the weight: a norm over queries would undo that.
        weights = {name: model.get_parameter(name).data.flip(1)}
        found = measure(Variant(weights=weights), first)
        with varied(model, Variant(weights=weights)), torch.no_grad():
            changed = [log_probabilities(model, window_T) for window_T in ids_BT]
        expected = sum(
            float((o.exp() * (o - c)).sum(dtype=torch.float64))
            for o, c in zip(originals, changed, strict=True)
        )
        assert found.nats == pytest.approx(expected / ids_BT.numel(), rel=1e-6)
        assert found.nats > 1e-6
        assert found.nats == pytest.approx(
            divergences(model, ids_BT, {"a": weights})["a"], rel=1e-6
        )
    assert measure(Variant(), 2).nats == 0
    assert all(
        torch.equal(log_probabilities(model, window_T), original)
        for window_T, original in zip(ids_BT, originals, strict=True)
    )


def test_a_shift_is_a_bias_on_a_module_without_one(tiny):
    source, model = loaded(tiny("qwen2"))
    measure = LayerDivergence(model, family(source).layers, sample_ids(2, 12))
    bias = "model.layers.1.self_attn.v_proj.bias"
    shift_M = torch.linspace(-1, 1, model.get_parameter(bias).numel())
    as_bias = Variant(weights={bias: model.get_parameter(bias).data + shift_M})
    as_shift = Variant(shifts={"model.layers.1.self_attn.v_proj": shift_M})
    one, two = measure(as_bias, 1).nats, measure(as_shift, 1).nats
    assert one == pytest.approx(two, rel=1e-4)
    assert one > 1e-4


def test_only_positions_that_count_and_the_spread_over_windows(tiny):
    source, model = loaded(tiny("llama"))
    layers, ids_BT = family(source).layers, sample_ids(3, 12)
    name = a_matrix(model, layers, 1)
    variant = Variant(weights={name: model.get_parameter(name).data * 0.2})
    single = [LayerDivergence(model, layers, ids_BT[[row]])(variant, 1) for row in range(3)]
    assert all(loss.stderr is None for loss in single)
    means = torch.tensor([loss.nats for loss in single], dtype=torch.float64)
    both = LayerDivergence(model, layers, ids_BT)(variant, 1)
    assert both.nats == pytest.approx(float(means.mean()))
    assert both.stderr == pytest.approx(float(means.std() / 3**0.5))
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT[0] = True
    masked = LayerDivergence(model, layers, ids_BT, mask_BT)(variant, 1)
    assert masked == single[0]
    half = divergences(model, ids_BT, {"a": variant.weights}, mask_BT=mask_BT)["a"]
    assert half == pytest.approx(masked.nats)


def test_a_variant_that_overflows_is_an_error(tiny):
    source, model = loaded(tiny("llama"))
    measure = LayerDivergence(model, family(source).layers, sample_ids(2, 12))
    name = "model.layers.2.mlp.down_proj.weight"
    broken = Variant(weights={name: torch.full_like(model.get_parameter(name).data, float("inf"))})
    with pytest.raises(SnapfitError, match="changed from layer 2 on predicts NaN"):
        measure(broken, 2)
