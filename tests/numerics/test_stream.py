"""Streaming a model: the same numbers as in memory, resumable, with errors that name the layer."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from streaming import STREAMED, build, stream_of, tokens_for
from torch import nn
from transformers import AutoModelForCausalLM

from snapfit.calib.collect import collect
from snapfit.core.errors import SnapfitError
from snapfit.nn import labels, sweep
from snapfit.nn import stream as stream_module
from snapfit.nn.observe import LinearObserver
from snapfit.nn.stream import micro_batches


@pytest.fixture(autouse=True)
def small_micro_batches(monkeypatch):
    monkeypatch.setattr(stream_module, "MICRO_BATCH_TOKENS", 24)


@pytest.mark.parametrize("architecture", STREAMED)
def test_embed_layers_and_head_give_the_logits_of_the_whole_model(architecture, tmp_path):
    build(architecture, tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    stream = stream_of(tmp_path)
    ids_BT = tokens_for().ids_BT
    hidden_BTD = stream.embed(ids_BT)
    for index in range(len(stream)):
        with stream.layer(index) as layer:
            hidden_BTD = stream.run_layer(index, layer, hidden_BTD)
    with stream.head() as head, torch.no_grad():
        logits_BTV = head(hidden_BTD)
        expected_BTV = whole(input_ids=ids_BT, use_cache=False).logits
    torch.testing.assert_close(logits_BTV, expected_BTV, rtol=1e-4, atol=1e-4)


def test_weights_are_in_memory_only_while_their_layer_runs(tmp_path):
    build("llama", tmp_path)
    stream = stream_of(tmp_path)
    seen = []

    class Visitor:
        def layer_started(self, index, shapes):
            real = {n.split(".")[2] for n, p in stream.model.named_parameters() if not p.is_meta}
            seen.append((index, real))

        def batch(self, index, calls):
            pass

        def layer_done(self, index):
            pass

    sweep.backward_sweep(stream, tokens_for().ids_BT, Visitor(), folder=tmp_path / "s", seed=0)
    assert seen == [(i, {str(i)}) for i in reversed(range(len(stream)))]
    assert all(p.is_meta for p in stream.model.parameters())


def test_run_layer_leaves_its_input_alone_and_takes_a_replacement(tmp_path):
    build("llama", tmp_path)
    stream = stream_of(tmp_path)
    hidden_BTD = torch.randn(5, 12, stream.hidden_size, generator=torch.Generator().manual_seed(0))
    before_BTD = hidden_BTD.clone()
    with stream.layer(0) as layer:
        dense_BTD = stream.run_layer(0, layer, hidden_BTD)
        layer.mlp.down_proj.weight.zero_()
        changed_BTD = stream.run_layer(0, layer, hidden_BTD)
    assert torch.equal(hidden_BTD, before_BTD)
    assert not torch.allclose(dense_BTD, changed_BTD)


def test_micro_batches_do_not_change_statistics(tmp_path, monkeypatch):
    build("gpt_neox", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()
    needs = ["second_moment", "grad_second_moment"]
    small = collect(stream, tokens, needs, tmp_path / "small", revision="r")
    monkeypatch.setattr(stream_module, "MICRO_BATCH_TOKENS", 1000)
    large = collect(stream, tokens, needs, tmp_path / "large", revision="r")
    for name, group in small.layer(0).items():
        for key, tensor in group.items():
            torch.testing.assert_close(tensor, large.layer(0)[name][key], rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("needs", [["second_moment"], ["second_moment", "grad_second_moment"]])
@pytest.mark.parametrize("when", ["forward", "head", "backward"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_resumed_collection_is_bit_identical(needs, when, after, tmp_path):
    build("qwen3", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()

    def stop(stage, done, total):
        if (stage, done) == (when, after):
            raise Interrupted

    straight = collect(stream, tokens, needs, tmp_path / "straight", revision="r")
    happens = len(needs) == 2 or when == "forward"
    if happens:
        with pytest.raises(Interrupted):
            collect(stream, tokens, needs, tmp_path / "resumed", revision="r", progress=stop)
    stages = []
    resumed = collect(
        stream,
        tokens,
        needs,
        tmp_path / "resumed",
        revision="r",
        progress=lambda stage, done, total: stages.append((stage, done)),
    )
    if happens:
        assert ("forward", 1) not in stages
    for index in range(len(stream)):
        one = load_file(straight.folder / f"layer_{index:03d}.safetensors")
        two = load_file(resumed.folder / f"layer_{index:03d}.safetensors")
        assert set(one) == set(two)
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert sorted(p.name for p in resumed.folder.iterdir()) == [
        *(f"layer_{index:03d}.safetensors" for index in range(len(stream))),
        "meta.json",
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from streaming import stream_of, tokens_for
from snapfit.calib.collect import collect
from snapfit.nn import stream as stream_module
stream_module.MICRO_BATCH_TOKENS = 24
def kill(stage, done, total):
    if (stage, done) == ({when!r}, 2):
        os.kill(os.getpid(), signal.SIGKILL)
stream = stream_of({model!r})
collect(stream, tokens_for(), {needs!r}, Path({folder!r}), revision="r", progress=kill)
"""


@pytest.mark.parametrize(("when", "needs"), [("forward", ["activation"]), ("backward", ["fisher"])])
def test_a_killed_process_loses_one_layer_at_most(when, needs, tmp_path):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    script = KILLED.format(
        tests=str(Path(__file__).parent),
        when=when,
        model=str(tmp_path / "model"),
        needs=needs,
        folder=str(tmp_path / "killed"),
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    stages = []
    resumed = collect(
        stream,
        tokens_for(),
        needs,
        tmp_path / "killed",
        revision="r",
        progress=lambda stage, done, total: stages.append((stage, done)),
    )
    assert stages == [(when, 3)]
    straight = collect(stream, tokens_for(), needs, tmp_path / "straight", revision="r")
    for index in range(len(stream)):
        for name, group in straight.layer(index).items():
            again = resumed.layer(index)[name]
            assert all(torch.equal(tensor, again[key]) for key, tensor in group.items())


def test_a_complete_folder_is_reused_without_work(tmp_path):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    tokens = tokens_for()
    collect(stream, tokens, ["activation_mean"], tmp_path / "s", revision="r")
    stages = []
    collect(
        stream,
        tokens,
        ["activation_mean"],
        tmp_path / "s",
        revision="r",
        progress=lambda *event: stages.append(event),
    )
    assert stages == []


@pytest.mark.parametrize("needs", [["second_moment"], ["grad_mean_square"]])
def test_overflow_names_the_layer(needs, tmp_path):
    build("llama", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.down_proj.weight"].fill_(1e38)
    save_file(weights, file, metadata={"format": "pt"})
    stream = stream_of(tmp_path / "model")
    with pytest.raises(SnapfitError, match=r"output of layer 1 \(model\.layers\.1\)"):
        collect(stream, tokens_for(), needs, tmp_path / "s", revision="r")


def test_an_overflowing_statistic_names_layer_and_module(tmp_path):
    build("llama", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.input_layernorm.weight"].fill_(1e30)  # finite, its square is not
    weights["model.layers.1.self_attn.o_proj.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})
    stream = stream_of(tmp_path / "model")
    for name in ("q_proj", "k_proj", "v_proj"):
        weights[f"model.layers.1.self_attn.{name}.weight"].zero_()
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SnapfitError, match=r"second_moment of .*layers\.1\.self_attn\.q_proj"):
        collect(stream, tokens_for(), ["second_moment"], tmp_path / "s", revision="r")


def test_too_little_disk_is_said_before_work_starts(tmp_path, monkeypatch):
    build("llama", tmp_path / "model")
    stream = stream_of(tmp_path / "model")
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(sweep.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SnapfitError, match=r"hidden states of 4 layers need"):
        collect(stream, tokens_for(), ["grad_mean_square"], tmp_path / "s", revision="r")


def test_sharing_is_by_identity_and_survives_reused_memory():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            first = self.a(x + 0) + self.b(x + 1)  # equal shapes; the first input may be freed
            y = first.clone()
            self.c(y)
            return self.b(y.add_(1))  # changed in place: another input

    with LinearObserver(block := Block(), "p") as observer, torch.no_grad():
        block(torch.zeros(2, 8))
        sources = [(call.module, call.source) for call in observer.take()]
    assert sources == [("p.a", 0), ("p.b", 1), ("p.c", 2), ("p.b", 3)]


def test_labels_follow_the_model_distribution():
    logits_TV = torch.tensor([[0.0, 1.0, -1.0, -float("inf")]]).expand(20000, 4)
    labels_T = labels.sampled_labels(logits_TV.softmax(-1), labels.label_noise(1, 20000, seed=0)[0])
    shares = torch.bincount(labels_T, minlength=4) / 20000
    torch.testing.assert_close(shares, logits_TV[0].softmax(-1), rtol=0, atol=0.015)
    assert shares[3] == 0


def test_a_label_without_probability_is_never_drawn():
    probability_TV = torch.tensor([[0.0, 0.5, 0.0, 0.5]]).expand(3, 4)
    uniform_T = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert labels.sampled_labels(probability_TV, uniform_T).tolist() == [1, 3, 3]


def test_a_backward_sweep_deletes_what_it_has_used(tmp_path):
    build("llama", tmp_path / "model")
    stream, folder, held = stream_of(tmp_path / "model"), tmp_path / "state", []

    class Visitor:
        def layer_started(self, index, shapes):
            pass

        def batch(self, index, seen):
            pass

        def layer_done(self, index):
            held.append(sorted(path.stem for path in folder.iterdir()))

    sweep.backward_sweep(stream, tokens_for().ids_BT, Visitor(), folder=folder, seed=0)
    assert held == [
        ["gradient_003", "hidden_000", "hidden_001", "hidden_002"],
        ["gradient_002", "hidden_000", "hidden_001"],
        ["gradient_001", "hidden_000"],
    ]
    assert [path.stem for path in folder.iterdir()] == ["gradient_000"]


def test_micro_batches_hold_whole_sequences():
    assert micro_batches(5, 12) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert micro_batches(2, 100) == [slice(0, 1), slice(1, 2)]
    assert micro_batches(3, 1, single=True) == [slice(0, 1), slice(1, 2), slice(2, 3)]
