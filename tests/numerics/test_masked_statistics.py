"""Statistics on some tokens only; the others are read and nothing is asked of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from streaming import build, stream_of, tokens_for
from torch import nn
from transformers import AutoModelForCausalLM

from snapfit.calib.collect import collect
from snapfit.core.errors import SnapfitError
from snapfit.nn.experts import unfuse_experts
from snapfit.nn.labels import label_noise, sampled_labels
from snapfit.nn.observe import Seen, counted
from snapfit.nn.refit import observe_both

SEED = 5


def masked_tokens():
    tokens = tokens_for(windows=4, context=12)
    mask_BT = torch.zeros_like(tokens.ids_BT, dtype=torch.bool)
    mask_BT[0, 5:] = True
    mask_BT[1, 2:9] = True
    mask_BT[3, [3, 7, 11]] = True
    return replace(tokens, mask_BT=mask_BT)


def by_autograd(folder, tokens, names):
    """(x, y, g) rows that count, of every linear layer; the loss is that of counted tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    unfuse_experts(model)
    calls, found = [], {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _module, inputs, y, name=name: calls.append((name, inputs[0], y))
        )
    uniform_BT = label_noise(*tokens.ids_BT.shape, SEED)
    for ids_T, mask_T, uniform_T in zip(tokens.ids_BT, tokens.mask_BT, uniform_BT, strict=True):
        calls.clear()
        logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0]
        labels_T = sampled_labels(logits_TV.detach().softmax(-1), uniform_T)
        losses_T = nn.functional.cross_entropy(logits_TV, labels_T, reduction="none")
        gradients = torch.autograd.grad(losses_T[mask_T].sum(), [y for *_, y in calls])
        for (name, x, y), g in zip(calls, gradients, strict=True):
            rows = [t.detach().flatten(0, -2)[mask_T].double() for t in (x, y, g)]
            found.setdefault(name, []).append(rows)
    return {
        name: [torch.cat(part) for part in zip(*rows, strict=True)] for name, rows in found.items()
    }


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_only_tokens_that_count_are_counted(architecture, tmp_path):
    build(architecture, tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), masked_tokens()
    needs = ["second_moment", "grad_second_moment", "activation_mean", "gradient", "fisher"]
    stats = collect(stream, tokens, needs, tmp_path / "s", revision="r", seed=SEED)
    assert stats.tokens == tokens.used == 7 + 7 + 3
    layers = {name: s for i in range(len(stream)) for name, s in stats.layer(i).items()}
    found = by_autograd(tmp_path / "model", tokens, layers)
    for name, got in layers.items():
        x, y, g = found[name]
        assert int(got["tokens"]) == tokens.used
        for key, want in (
            ("second_moment", x.T @ x / tokens.used),
            ("grad_second_moment", g.T @ g / tokens.used),
            ("activation_mean", x.abs().mean(0)),
        ):
            scale = float(want.abs().max())
            torch.testing.assert_close(got[key].double() / scale, want / scale, rtol=0, atol=2e-5)
        assert float(got["fisher"]) > 0
        bound = float((g.norm(dim=1) * y.norm(dim=1)).sum())
        assert float(got["gradient"]) == pytest.approx(
            float((g * y).sum(1).abs().sum()), rel=1e-3, abs=1e-5 * bound
        )


def test_experts_know_which_of_their_tokens_count(tmp_path):
    build("mixtral", tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), masked_tokens()
    stats = collect(stream, tokens, ["second_moment"], tmp_path / "s", revision="r")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    unfuse_experts(model)
    given = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.experts.register_forward_pre_hook(
            lambda _module, inputs, layer=layer: given.__setitem__(layer, inputs)
        )
    with torch.no_grad():
        model(tokens.ids_BT)
    mask_T = tokens.mask_BT.flatten()
    for layer, (hidden_TH, chosen_TK, _) in given.items():
        reached = 0
        for expert in range(4):
            rows_T = mask_T & (chosen_TK == expert).any(1)
            name = f"model.layers.{layer}.mlp.experts.{expert}.gate"
            got = stats.layer(layer)[name]
            assert int(got["tokens"]) == int(rows_T.sum())
            reached += int(got["tokens"])
            x = hidden_TH[rows_T].double()
            torch.testing.assert_close(
                got["second_moment"].double(), x.T @ x / tokens.used, rtol=1e-4, atol=1e-5
            )
        assert reached == 2 * tokens.used


def test_whole_windows_that_do_not_count_change_nothing(tmp_path):
    build("llama", tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), tokens_for(windows=3)
    mask_BT = torch.ones_like(tokens.ids_BT, dtype=torch.bool)
    mask_BT[2] = False
    part = replace(tokens, ids_BT=tokens.ids_BT[:2])
    one = collect(
        stream, replace(tokens, mask_BT=mask_BT), ["second_moment"], tmp_path / "a", revision="r"
    )
    two = collect(stream, part, ["second_moment"], tmp_path / "b", revision="r")
    for index in range(len(stream)):
        for name, group in one.layer(index).items():
            torch.testing.assert_close(
                group["second_moment"], two.layer(index)[name]["second_moment"]
            )


def test_rows_that_are_no_tokens_are_refused():
    call = Seen(module="layer.odd", source=0, x=torch.zeros(5, 3), y=torch.zeros(5, 2))
    with pytest.raises(SnapfitError, match=r"layer\.odd does not read one row a token"):
        counted([call], torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_only_tokens_that_count_are_compared(architecture, tmp_path):
    """Attention looks back only: the first half of every window knows nothing of the rest."""
    build(architecture, tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    ids_BT = torch.randint(4, 60, (3, 24), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT[:2, :12] = True

    def means(ids_BT, mask_BT):
        dense_BTD = stream.embed(ids_BT)
        with stream.layer(0) as layer:
            linear = [n for n, m in layer.named_modules() if isinstance(m, nn.Linear)]
            modules = [f"{stream.prefix(0)}.{name}" for name in linear]
            other_BTD = 0.9 * dense_BTD
            found = observe_both(
                stream, 0, layer, dense_BTD, other_BTD, {}, modules, mask_BT=mask_BT
            )
        return {name: drift.means() for name, drift in found.items()}

    masked, short = means(ids_BT, mask_BT), means(ids_BT[:2, :12], None)
    assert {name.rpartition(".")[2] for name in masked} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert masked.keys() == short.keys()
    for name, pair in masked.items():
        for one, other in zip(pair, short[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
