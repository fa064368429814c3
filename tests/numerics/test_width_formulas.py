"""Each width method against a direct transcription of its published formula, on whole models."""

from __future__ import annotations

import pytest
import torch
from streaming import build, stream_of, tokens_for
from torch import nn

from snapfit.calib.collect import collect
from snapfit.core.curve import NATS
from snapfit.methods._lowrank import COMPARABLE_NEEDS
from snapfit.methods._width_stage import order_width_layer
from snapfit.methods.registry import load_method
from snapfit.models.describe import describe, open_model
from snapfit.models.source import empty_model
from snapfit.models.weights import open_weights
from snapfit.nn import removal
from snapfit.nn.labels import label_noise, sampled_labels
from snapfit.nn.removal import removal_losses

LAYER = 1
ARCHITECTURES = ("llama", "qwen3", "phi3", "gpt_neox", "olmo2", "mixtral", "opt")
NEEDS = {"taylor", "activation_mean", "head_norm", "fluctuation", "routing"} | COMPARABLE_NEEDS


class Case:
    """A tiny model with its groups, statistics and what passes through every linear layer."""

    def __init__(self, architecture, folder):
        build(architecture, folder / "model")
        source = open_model(folder / "model")
        self.model = empty_model(source)
        self.reader = open_weights(source, self.model)
        self.reader.load_into(self.model, "")
        self.ids_BT = tokens_for().ids_BT
        self.space = describe(source, name="x")
        stream = stream_of(folder / "model")
        stats = collect(stream, tokens_for(), NEEDS, folder / "stats", revision="r")
        self.stats = stats.layer(LAYER)
        self.inputs: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self._record()

    def _record(self):
        calls = []
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear) and f".{LAYER}." in name:
                module.register_forward_hook(lambda _m, x, y, n=name: calls.append((n, x[0], y)))
        logits_BTV = self.model(self.ids_BT, use_cache=False).logits
        noise_BT = label_noise(*self.ids_BT.shape, 0)
        labels_T = torch.cat(
            [
                sampled_labels(logits_TV.detach().softmax(-1), noise_T)
                for logits_TV, noise_T in zip(logits_BTV, noise_BT, strict=True)
            ]
        )
        loss = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels_T, reduction="sum")
        gradients = torch.autograd.grad(loss, [y for *_, y in calls], retain_graph=True)
        for (name, x, _), g in zip(calls, gradients, strict=True):
            self.inputs[name] = x.detach().flatten(0, -2).double()
            self.gradients[name] = g.flatten(0, -2).double()
        weights = {name: self.model.get_submodule(name).weight for name in self.inputs}
        own = nn.functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), self.ids_BT[:, 1:].flatten(), reduction="sum"
        )
        slopes = torch.autograd.grad(own, list(weights.values()))
        self.weights = {name: weight.detach().double() for name, weight in weights.items()}
        self.slopes = {
            name: slope.double() / self.ids_BT.numel()
            for name, slope in zip(weights, slopes, strict=True)
        }

    def groups(self, *kinds):
        groups = [g for g in self.space.of_kind(*kinds).groups if g.layer == LAYER]
        assert groups or "experts" in kinds
        return groups

    def ordered(self, method, *kinds, **settings):
        method = load_method(method, settings)
        return order_width_layer(method, self.groups(*kinds), self.reader.get, self.stats)[0]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp(request.param))


def by_unit(case, group, value):
    """Each unit's sum of `value(module name)`, a (M, N) tensor, over its rows and columns."""
    totals = []
    for unit in range(group.full):
        total = 0.0
        for matrix in group.matrices:
            size = matrix.features // group.full
            part = slice(matrix.start + unit * size, matrix.start + (unit + 1) * size)
            block = value(matrix.name)
            total += float((block[:, part] if matrix.axis == "in" else block[part]).sum())
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)


def assert_agrees(ordered, group, importance, rtol=1e-4):
    found = ordered[group.name].tensors
    order = torch.argsort(importance, descending=True, stable=True)
    torch.testing.assert_close(found["importance"], importance[order], rtol=rtol, atol=1e-9)
    torch.testing.assert_close(importance[found["order"]], importance[order], rtol=rtol, atol=1e-9)


def test_taylor_is_the_structure_s_sum_of_weight_times_gradient(case):
    """LLM-Pruner, equation of element-wise importance, first order, summed over the structure."""
    ordered = case.ordered("llm-pruner", "width", "kv_heads")
    for group in case.groups("width", "kv_heads"):
        worth = by_unit(case, group, lambda n: (case.weights[n] * case.slopes[n]).abs())
        assert_agrees(ordered, group, worth)


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes(case, name, power):
    ordered = case.ordered("llm-pruner", "width", "kv_heads", importance=name)
    for group in case.groups("width", "kv_heads"):
        assert_agrees(
            ordered, group, by_unit(case, group, lambda n: case.weights[n].abs() ** power)
        )


def test_minitron_is_the_mean_activation(case):
    ordered = case.ordered("minitron", "width", "kv_heads")
    heads = case.model.config.num_attention_heads
    for group in case.groups("width", "kv_heads"):
        x = case.inputs[group.matrices[-1].name]
        if group.kind == "width":
            expected = x.abs().mean(0)
        else:
            norms = x.unflatten(-1, (heads, -1)).norm(dim=-1).mean(0)
            expected = norms.reshape(group.full, -1).mean(1)
        assert_agrees(ordered, group, expected)


def test_flap_is_standardised_fluctuation(case):
    ordered = case.ordered("flap", "width", "kv_heads")
    for group in case.groups("width", "kv_heads"):
        name = group.matrices[-1].name
        x, weight = case.inputs[name], case.weights[name]
        fluctuation = ((x - x.mean(0)) ** 2).sum(0) / (len(x) - 1)
        metric = fluctuation * (weight**2).sum(0)
        metric = (metric - metric.mean()) / metric.std()
        assert_agrees(ordered, group, metric.reshape(group.full, -1).mean(1))


def test_flap_s_bias_is_what_the_removed_inputs_put_out_on_average(case):
    """Fixing the removed inputs at their mean is zeroing their columns and adding W_S mean_S."""
    for group in case.groups("width", "kv_heads"):
        name = group.matrices[-1].name
        x, weight = case.inputs[name], case.weights[name]
        item = case.ordered("flap", group.kind)[group.name]
        gone = item.tensors["order"][group.full // 2 :]
        size = weight.shape[1] // group.full
        columns = (gone[:, None] * size + torch.arange(size)).flatten()
        fixed = x.clone()
        fixed[:, columns] = x[:, columns].mean(0)
        bias = weight[:, columns] @ item.tensors["mean"].double()[columns]
        kept = x.clone()
        kept[:, columns] = 0
        torch.testing.assert_close(kept @ weight.T + bias, fixed @ weight.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["llm-pruner", "minitron", "flap"])
def test_curves_are_the_expected_quadratic_loss(case, method):
    """½ E[Σ_m F_m Δy_m²] of the very outputs that are lost, for every prefix of the order."""
    total = case.ids_BT.numel()
    ordered = case.ordered(method, "width", "kv_heads")
    for group in case.groups("width", "kv_heads"):
        name = group.matrices[-1].name
        x, weight = case.inputs[name], case.weights[name]
        fisher = case.gradients[name].square().mean(0)
        curve, order = ordered[group.name].curve, ordered[group.name].tensors["order"]
        size = weight.shape[1] // group.full
        if method == "flap":
            x = x - x.mean(0)
        losses = []
        for kept in range(group.full + 1):
            columns = (order[kept:, None] * size + torch.arange(size)).flatten()
            lost = x[:, columns] @ weight[:, columns].T
            losses.append(float(0.5 * (lost.square() * fisher).sum() / total))
        # Where errors cancel, removing less can cost more; a curve never says so.
        expected = torch.tensor(losses).flip(0).cummax(0).values.flip(0)
        assert curve.unit == NATS
        assert curve.sizes.tolist() == list(range(group.full + 1))
        torch.testing.assert_close(
            torch.from_numpy(curve.losses.copy()), expected.double(), rtol=2e-4, atol=1e-9
        )


def test_whole_experts_by_routing_and_by_what_they_add(tmp_path):
    case = Case("mixtral", tmp_path)
    (group,) = case.groups("experts")
    x = case.inputs["model.layers.1.self_attn.q_proj"]
    assert len(x) == case.ids_BT.numel()
    routed = []

    def record(_module, inputs):
        routed.append(inputs)

    experts = case.model.get_submodule(group.name)
    experts.register_forward_pre_hook(record)
    with torch.no_grad():
        case.model(case.ids_BT, use_cache=False)
    ((_, index_TK, weight_TK),) = routed
    usage = torch.stack([weight_TK[index_TK == e].double().sum() for e in range(4)]) / len(x)
    settings = {"parts": "experts"}
    assert_agrees(case.ordered("minitron", "experts", **settings), group, usage)
    flap = case.ordered("flap", "experts", **settings)
    assert_agrees(flap, group, (usage - usage.mean()) / usage.std())
    assert "mean" not in flap[group.name].tensors
    taylor = torch.stack(
        [
            sum(
                (case.weights[n] * case.slopes[n]).abs().sum()
                for n in (f"{group.name}.{e}.{leaf}" for leaf in ("gate", "up", "down"))
            )
            for e in range(4)
        ]
    )
    assert_agrees(case.ordered("llm-pruner", "experts", **settings), group, taylor)

    item = flap[group.name]
    lost = []
    for expert in item.tensors["order"].tolist():
        name = f"{group.name}.{expert}.down"
        y = case.inputs[name] @ case.weights[name].T
        fisher = case.gradients[name].square().mean(0)
        lost.append(0.5 * (y.square() * fisher).sum() / len(x))
    expected = [float(sum(lost[kept:], torch.tensor(0.0))) for kept in range(5)]
    assert item.curve.losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("block", [1, 8, 1024])
@pytest.mark.parametrize("share", [None, 0.7])
def test_removal_losses_equal_the_double_sum(monkeypatch, block, share):
    monkeypatch.setattr(removal, "BLOCK", block)
    generator = torch.Generator().manual_seed(3)
    weight, fisher = torch.randn(5, 24, generator=generator), torch.rand(5, generator=generator)
    moment = torch.randn(30, 24, generator=generator)
    moment, mean = moment.T @ moment / 30, moment.mean(0)
    order = torch.randperm(8, generator=generator)
    found = removal_losses(
        weight,
        order,
        moment_NN=moment,
        fisher_M=fisher,
        mean_N=None if share is None else mean,
        share=share or 1.0,
    )
    spread = moment if share is None else moment - share * torch.outer(mean, mean)
    form = (spread * (weight.T @ (fisher[:, None] * weight))).double()
    for kept in range(9):
        gone = (order[kept:, None] * 3 + torch.arange(3)).flatten()
        assert float(found[kept]) == pytest.approx(0.5 * float(form[gone][:, gone].sum()), rel=1e-5)
