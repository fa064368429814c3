"""What the forward passes of depth methods return, against plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from streaming import STREAMED, build, stream_of, tokens_for
from transformers import AutoModelForCausalLM

from snapfit.methods._passes import pieces, silenced, text_loss
from snapfit.methods.shortgpt import block_influence
from snapfit.nn.stream import LayerStream

NEAR = {"atol": 2e-5, "rtol": 2e-5}


def last_output(stream: LayerStream, ids_BT: torch.Tensor) -> torch.Tensor:
    hidden_BTD = stream.embed(ids_BT)
    for index in range(len(stream)):
        with stream.layer(index) as layer:
            hidden_BTD = stream.run_layer(index, layer, hidden_BTD)
    return hidden_BTD


@pytest.mark.parametrize("architecture", STREAMED)
def test_the_final_state_is_what_the_head_reads(architecture: str, tmp_path: Path) -> None:
    folder = build(architecture, tmp_path / "model")
    ids_BT = tokens_for(windows=3).ids_BT
    stream = stream_of(folder)
    ours = stream.final(last_output(stream, ids_BT))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model.base_model(ids_BT, use_cache=False).last_hidden_state
    torch.testing.assert_close(ours, theirs, **NEAR)


def test_only_tokens_that_count_are_scored(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "model")
    ids_BT = tokens_for(windows=3).ids_BT
    mask_BT = torch.rand(ids_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    stream = stream_of(folder)
    hidden_BTD = last_output(stream, ids_BT)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits_BTV = model(ids_BT, use_cache=False).logits[:, :-1]
    losses_BT = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    ).view(len(ids_BT), -1)
    counted = losses_BT[mask_BT[:, :-1]].mean()
    assert text_loss(stream, hidden_BTD, ids_BT, mask_BT) == pytest.approx(float(counted), rel=1e-5)
    assert text_loss(stream, hidden_BTD, ids_BT) == pytest.approx(float(losses_BT.mean()), rel=1e-5)

    before_BTD, after_BTD = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(1))
    cosine_BT = torch.cosine_similarity(before_BTD, after_BTD, dim=-1)
    assert float(block_influence(before_BTD, after_BTD, mask_BT)) == pytest.approx(
        float(1 - cosine_BT[mask_BT].mean()), rel=1e-5
    )


def test_pieces_are_whole_and_spread_over_the_windows() -> None:
    ids_BT = torch.arange(40).view(4, 10)
    assert pieces(ids_BT, samples=3, length=4).tolist() == [
        [0, 1, 2, 3],
        [14, 15, 16, 17],
        [34, 35, 36, 37],
    ]
    assert pieces(ids_BT, samples=100, length=100).equal(ids_BT)
    assert pieces(ids_BT, samples=1, length=3).tolist() == [[0, 1, 2]]


def test_a_silenced_module_answers_zeros_until_the_block_ends() -> None:
    layer = torch.nn.Linear(3, 2)
    x = torch.ones(1, 3)
    before = layer(x)
    with silenced(layer):
        assert layer(x).abs().sum() == 0
    assert torch.equal(layer(x), before)
