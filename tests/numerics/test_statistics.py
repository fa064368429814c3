"""Streamed statistics equal those of autograd on the whole model in memory."""

from __future__ import annotations

import pytest
import torch
from streaming import STREAMED, build, stream_of, tokens_for
from torch import nn
from transformers import AutoModelForCausalLM

from snapfit.calib import statistic
from snapfit.calib.collect import collect
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.nn.experts import UnfusedExperts, unfuse_experts
from snapfit.nn.labels import label_noise, sampled_labels

SEED = 5


def reference(folder, ids_BT, layers_path):
    """(x, y, g) of every linear layer, a sequence at a time, by autograd on the whole model.

    Also dL/dw of the loss of the text's own next tokens, summed over all sequences, the router's
    weights of every expert, added up, and the features of a head of every module that has heads.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    unfuse_experts(model)
    uniform_BT = label_noise(*ids_BT.shape, SEED)
    found: dict[str, list] = {}
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{layers_path}.")
    }
    calls = []

    def hook(name):
        def record(_module, inputs, y):
            if inputs[0].numel():
                calls.append((name, inputs[0], y))

        return record

    for name, module in linears.items():
        module.register_forward_hook(hook(name))
    routing: dict[str, float] = {}

    def route(name):
        def record(module, inputs):
            for index in range(module.num_experts):
                chosen = inputs[2].detach()[inputs[1] == index].double().sum()
                expert = f"{name}.{index}"
                routing[expert] = routing.get(expert, 0.0) + float(chosen)

        return record

    for name, module in model.named_modules():
        if isinstance(module, UnfusedExperts):
            module.register_forward_pre_hook(route(name))
    for row, ids_T in enumerate(ids_BT):
        calls.clear()
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
        labels_T = sampled_labels(logits_TV.detach().softmax(-1), uniform_BT[row])
        loss = nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum")
        gradients = torch.autograd.grad(
            loss, [y for *_, y in calls], allow_unused=True, materialize_grads=True
        )
        for (name, x, y), g in zip(calls, gradients, strict=True):
            flat = tuple(t.detach().flatten(0, -2).double() for t in (x, y, g))
            found.setdefault(name, []).append(flat)
    counted = dict(routing)  # without the next pass
    own = model(input_ids=ids_BT, use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = nn.functional.cross_entropy(own, ids_BT[:, 1:].flatten(), reduction="sum")
    weights = [module.weight for module in linears.values()]
    slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    facts = {}
    for (name, module), slope in zip(linears.items(), slopes, strict=True):
        holder = model.get_submodule(name.rpartition(".")[0])
        head = getattr(holder, "head_dim", getattr(holder, "head_size", 0))
        if not head or module.in_features % head:
            head = module.in_features
        weight = counted.get(name.rpartition(".")[0], float(ids_BT.numel()))
        facts[name] = (slope, weight, head)
    return found, linears, facts


def expected(sequences, module, total, facts):
    slope, routed, head = facts
    worth = (module.weight * slope).detach().double().abs() / total
    empty = (
        torch.zeros(0, module.in_features).double(),
        torch.zeros(0, module.out_features).double(),
        torch.zeros(0, module.out_features).double(),
    )
    sequences = sequences or [empty]
    x, y, g = (torch.cat(parts) for parts in zip(*sequences, strict=True))
    squares = sum((g_.T @ x_).square() for x_, _, g_ in sequences)
    reached = max(len(x), 1)
    norms = x.unflatten(-1, (-1, head)).norm(dim=-1).sum(0) / reached
    return {
        "taylor_rows": worth.sum(1),
        "taylor_columns": worth.sum(0),
        "routing": torch.tensor(routed / total),
        "head_norm": norms if len(x) else torch.zeros(1),
        "input_mean": x.sum(0) / reached,
        "input_variance": x.var(0) if len(x) > 1 else torch.zeros(module.in_features),
        "input_share": torch.tensor(len(x) / total),
        "second_moment": x.T @ x / total,
        "grad_second_moment": g.T @ g / reached,
        "grad_mean_square": g.square().sum(0) / reached,
        "activation_mean": x.abs().sum(0) / reached,
        "activation": x.norm(),
        "gradient": (g * y).sum(1).abs().sum(),
        "fisher": squares.sum(),
        "fisher_rows": squares.sum(1),
        "fisher_columns": squares.sum(0),
        "fisher_root": (squares / len(sequences)).sqrt().mean(1),
        "tokens": torch.tensor(len(x)),
    }


@pytest.mark.parametrize("architecture", STREAMED)
def test_statistics_equal_autograd_on_the_whole_model(architecture, tmp_path):
    build(architecture, tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()
    found, linears, facts = reference(tmp_path / "model", tokens.ids_BT, stream.layers_path)
    stats = collect(stream, tokens, statistic.names(), tmp_path / "stats", revision="r", seed=SEED)
    seen = set()
    for index in range(len(stream)):
        for name, group in stats.layer(index).items():
            seen.add(name)
            want = expected(found.get(name), linears[name], tokens.used, facts[name])
            assert set(group) == set(want), name
            for key, tensor in group.items():
                scale = float(want[key].abs().max()) + 1e-30
                if key == "gradient":  # exactly zero before a norm, which ignores the scale
                    scale += float(want["activation"] * want["grad_mean_square"].sum().sqrt())
                torch.testing.assert_close(
                    tensor.double() / scale,
                    want[key].double() / scale,
                    rtol=0,
                    atol=2e-5,
                    msg=lambda text, name=name, key=key: f"{name}/{key}: {text}",
                )
    assert seen == set(linears)


@pytest.mark.parametrize("architecture", STREAMED)
def test_a_forward_sweep_gives_the_same_input_moments(architecture, tmp_path):
    build(architecture, tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()
    forward = collect(stream, tokens, ["second_moment"], tmp_path / "f", revision="r")
    both = collect(
        stream, tokens, ["second_moment", "grad_mean_square"], tmp_path / "b", revision="r"
    )
    for index in range(len(stream)):
        one, two = forward.layer(index), both.layer(index)
        assert set(one) == set(two)
        for name, group in one.items():
            torch.testing.assert_close(group["second_moment"], two[name]["second_moment"])


def test_modules_that_read_one_tensor_share_one_stored_moment(tmp_path):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    stats = collect(
        stream,
        tokens_for(),
        ["second_moment"],
        tmp_path / "stats",
        revision="r",
    )
    moments = {
        name.rpartition(".")[2]: group["second_moment"] for name, group in stats.layer(0).items()
    }
    assert moments["q_proj"] is moments["k_proj"] is moments["v_proj"]
    assert moments["gate_proj"] is moments["up_proj"]
    assert len({id(moment) for moment in moments.values()}) == 4


def test_experts_share_only_with_themselves_and_count_their_tokens(tmp_path):
    build("mixtral", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()
    stats = collect(stream, tokens, ["second_moment"], tmp_path / "stats", revision="r")
    experts = {n: g for n, g in stats.layer(0).items() if ".experts." in n}
    gates = [n for n in experts if n.endswith(".gate")]
    assert len({id(experts[n]["second_moment"]) for n in gates}) == len(gates)
    for name in gates:
        up = name.removesuffix("gate") + "up"
        assert experts[name]["second_moment"] is experts[up]["second_moment"]
    routed = sum(int(experts[name]["tokens"]) for name in gates)
    assert routed == tokens.used * stream.model.config.num_experts_per_tok


def test_only_the_modules_asked_for_are_collected(tmp_path):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    wanted = ["model.layers.0.self_attn.k_proj", "model.layers.1.self_attn.v_proj"]
    stats = collect(
        stream,
        tokens_for(),
        ["activation_mean"],
        tmp_path / "stats",
        revision="r",
        modules=wanted,
    )
    assert [list(stats.layer(index)) for index in range(2)] == [[wanted[0]], [wanted[1]]]


def test_few_tokens_are_said_and_enough_are_not(tmp_path):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    few = collect(
        stream,
        tokens_for(windows=1, context=4),
        ["second_moment"],
        tmp_path / "few",
        revision="r",
    )
    assert "4 calibration tokens are few" in few.warnings[0]
    many = collect(
        stream,
        tokens_for(windows=32, context=64),
        ["second_moment"],
        tmp_path / "many",
        revision="r",
    )
    assert many.warnings == ()


def test_a_folder_of_another_job_is_refused(tmp_path):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()
    collect(stream, tokens, ["activation"], tmp_path / "stats", revision="one")
    with pytest.raises(SnapfitError, match="revision differ"):
        collect(stream, tokens, ["activation"], tmp_path / "stats", revision="two")


def test_an_unknown_statistic_suggests_a_known_one():
    with pytest.raises(UsageError, match="did you mean 'second_moment'"):
        statistic.statistic("second_moments")
