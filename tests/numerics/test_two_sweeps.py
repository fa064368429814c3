"""Gradients of sampled labels and of the text's own: one backward sweep each, merged, resumed."""

from __future__ import annotations

import pytest
import torch
from streaming import build, stream_of, tokens_for

from snapfit.calib import collect as module
from snapfit.calib.collect import collect
from snapfit.calib.store import layer_path
from snapfit.nn import sweep

NEEDS = ["taylor", "grad_mean_square", "activation_mean"]


class Killed(Exception):
    """Stands for a signal."""


def layers(stats):
    return [stats.layer(index) for index in range(stats.layers)]


def same(one, two):
    assert [list(layer) for layer in one] == [list(layer) for layer in two]
    for a, b in zip(one, two, strict=True):
        for name, group in a.items():
            assert group.keys() == b[name].keys() == {"tokens", *wanted()}
            for key, tensor in group.items():
                assert torch.equal(tensor, b[name][key]), (name, key)


def wanted():
    return {"taylor_rows", "taylor_columns", "grad_mean_square", "activation_mean"}


@pytest.mark.parametrize("after", range(1, 6))
def test_a_job_that_was_killed_goes_on_where_it_was(after, tmp_path, monkeypatch):
    """Three layers, two sweeps: killed after each of the first five layers that were written."""
    build("llama", tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), tokens_for()
    whole = collect(stream, tokens, NEEDS, tmp_path / "whole", revision="r")
    assert sorted(path.name for path in whole.folder.iterdir()) == [
        "layer_000.safetensors",
        "layer_001.safetensors",
        "layer_002.safetensors",
        "meta.json",
    ]
    written = 0
    write = module.write_layer

    def killing(*arguments):
        nonlocal written
        if written == after:
            raise Killed
        written += 1
        write(*arguments)

    monkeypatch.setattr(module, "write_layer", killing)
    with pytest.raises(Killed):
        collect(stream, tokens, NEEDS, tmp_path / "killed", revision="r")
    monkeypatch.setattr(module, "write_layer", write)
    swept = []
    again = collect(
        stream,
        tokens,
        NEEDS,
        tmp_path / "killed",
        revision="r",
        progress=lambda stage, done, _total: swept.append(stage) if stage == "backward" else None,
    )
    same(layers(whole), layers(again))
    assert len(swept) == 6 - after
    assert not (again.folder / "text").exists()


@pytest.mark.parametrize("index", range(3))
def test_a_job_killed_between_a_layer_and_its_state_goes_on(index, tmp_path, monkeypatch):
    """The layer of both sweeps is on disk, the gradient from which to go on is not yet."""
    build("llama", tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), tokens_for()
    whole = collect(stream, tokens, NEEDS, tmp_path / "whole", revision="r")
    killed = tmp_path / "killed"
    save = sweep.save_tensors

    def killing(path, *arguments):
        if path == killed / "state" / f"gradient_{index:03d}.safetensors":
            raise Killed
        save(path, *arguments)

    monkeypatch.setattr(sweep, "save_tensors", killing)
    with pytest.raises(Killed):
        collect(stream, tokens, NEEDS, killed, revision="r")
    monkeypatch.setattr(sweep, "save_tensors", save)
    assert layer_path(killed, index).exists()
    again = collect(stream, tokens, NEEDS, killed, revision="r")
    same(layers(whole), layers(again))
    assert not (killed / "text").exists()


def test_one_sweep_is_enough_without_sampled_labels(tmp_path):
    build("llama", tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), tokens_for()
    stages = []
    stats = collect(
        stream,
        tokens,
        ["taylor", "activation_mean"],
        tmp_path / "stats",
        revision="r",
        progress=lambda stage, done, total: stages.append((stage, done)),
    )
    assert [done for stage, done in stages if stage == "backward"] == [1, 2, 3]
    both = collect(stream, tokens, NEEDS, tmp_path / "both", revision="r")
    for one, two in zip(layers(stats), layers(both), strict=True):
        for name in one:
            assert torch.equal(one[name]["taylor_rows"], two[name]["taylor_rows"])


def test_the_seed_changes_sampled_labels_and_not_the_text(tmp_path):
    build("llama", tmp_path / "model")
    stream, tokens = stream_of(tmp_path / "model"), tokens_for()
    one, two = (
        collect(stream, tokens, NEEDS, tmp_path / str(seed), revision="r", seed=seed).layer(1)
        for seed in (0, 1)
    )
    for name in one:
        assert torch.equal(one[name]["taylor_columns"], two[name]["taylor_columns"])
        assert not torch.equal(one[name]["grad_mean_square"], two[name]["grad_mean_square"])
