"""What the forward passes of depth methods return, against plain transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from streaming import STREAMED, build, stream_of, tokens_for
from transformers import AutoModelForCausalLM

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.methods._depth import DepthView, one_shot
from snapfit.methods._passes import Memo, pieces, scored_pieces, silenced, text_loss
from snapfit.methods.perplexity import Compressor as Perplexity
from snapfit.methods.shortgpt import block_influence
from snapfit.methods.taylor import Compressor as Taylor
from snapfit.nn.stream import LayerStream
from snapfit.nn.sweep import no_progress

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


def test_the_first_order_term_is_of_the_tokens_that_count(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "model")
    ids_BT = tokens_for(windows=3).ids_BT
    mask_BT = torch.rand(ids_BT.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    view = DepthView(
        stream=stream_of(folder),
        dense=list,
        ids_BT=ids_BT,
        mask_BT=mask_BT,
        modules={},
        folder=tmp_path,
        seed=0,
        progress=no_progress,
    )
    scores = Taylor(samples=3, length=12).schedule(view).scores
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    logits_BTV = model(ids_BT, use_cache=False).logits[:, :-1]
    losses_BT = torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="none"
    ).view(len(ids_BT), -1)
    losses_BT[mask_BT[:, :-1]].mean().backward()
    expected = [
        sum(float((w.detach() * w.grad).abs().sum()) for w in layer.parameters())
        for layer in model.model.layers
    ]
    assert scores == pytest.approx(expected, rel=2e-4)


def test_pieces_are_whole_and_spread_over_the_windows() -> None:
    ids_BT = torch.arange(40).view(4, 10)
    assert pieces(ids_BT, samples=3, length=4).tolist() == [
        [0, 1, 2, 3],
        [14, 15, 16, 17],
        [34, 35, 36, 37],
    ]
    assert pieces(ids_BT, samples=100, length=100).equal(ids_BT)
    assert pieces(ids_BT, samples=1, length=3).tolist() == [[0, 1, 2]]


def test_pieces_without_a_token_that_counts_are_refused() -> None:
    """A loss over nothing would be the same without any layer."""
    ids_BT = torch.arange(40).view(4, 10)
    mask_BT = torch.zeros(4, 10, dtype=torch.bool)
    mask_BT[0, 5:] = True  # an answer behind a prompt
    view: Any = SimpleNamespace(ids_BT=ids_BT, mask_BT=mask_BT)
    ids_ST, mask_ST = scored_pieces(view, samples=1, length=10)
    assert ids_ST.equal(ids_BT[:1])
    assert mask_ST is not None
    assert mask_ST.equal(mask_BT[:1])
    for length in (5, 6):  # no answer; its first token, whose next one is not there
        with pytest.raises(SnapfitError, match=f"in 1 x {length} calibration tokens"):
            scored_pieces(view, samples=1, length=length)
    view.mask_BT = None
    assert scored_pieces(view, samples=1, length=2)[1] is None
    for method in (Taylor, Perplexity):
        with pytest.raises(SnapfitError, match="in 10 x 1 calibration tokens"):
            method(length=1).schedule(_silent(view))


def _silent(view: Any) -> Any:
    names, stream = (lambda _part: tuple("abcd")), range(4)
    return SimpleNamespace(**vars(view), names=names, stream=stream)


def test_of_equal_layers_the_deeper_one_goes_first() -> None:
    view: Any = SimpleNamespace(names=lambda _part: tuple("abcd"), stream=range(4))
    made = one_shot(view, [2.0, 1.0, 2.0, -1.0], part="attention", unit="u", meaning="m")
    gone = [made.at(size).removed for size in (4, 3, 2, 1)]
    assert gone == [(), ("d",), ("b", "d"), ("b", "c", "d")]
    # What a layer improves is no loss, nor does it make up for another's.
    assert made.losses == {4: 0.0, 3: 0.0, 2: 1.0, 1: 3.0}


def test_a_silenced_module_answers_zeros_until_the_block_ends() -> None:
    layer = torch.nn.Linear(3, 2)
    x = torch.ones(1, 3)
    before = layer(x)
    with silenced(layer):
        assert layer(x).abs().sum() == 0
    assert torch.equal(layer(x), before)


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    assert Memo(path)("a", lambda: 0.25) == 0.25
    assert Memo(path)("a", lambda: 1 / 0) == 0.25


@pytest.mark.parametrize("damage", ["", "5", "null", '{"a": null}', '{"a": "b"}'])
def test_damaged_measurements_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "losses.json"
    path.write_text(damage)
    with pytest.raises(CorruptFile, match=r"losses\.json .*delete it and rerun"):
        Memo(path)("b", lambda: 0.0)
