"""Ordered bases on disk: what is written comes back, and what is broken is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from snapfit.core.curve import Curve
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.nn import tensorfile
from snapfit.nn.ordered import Ordered, OrderedStore


def some(name: str = "g") -> dict[str, Ordered]:
    factors = {"a": torch.rand(2, 5), "b": torch.rand(3, 2), "mean": torch.rand(5)}
    curve = Curve(sizes=np.array([1, 2, 3]), losses=np.array([0.3, 0.1, 0.0]), unit="u")
    return {name: Ordered(tensors=factors, curve=curve)}


def test_bases_come_back_and_only_weights_change_their_type(tmp_path: Path) -> None:
    store, made = OrderedStore(tmp_path), some()
    assert not store.has(0)
    store.write(0, made, {"g": {"score": 1.5}}, torch.bfloat16)
    assert store.has(0)
    read = store.read(0)
    assert read.summaries == {"g": {"score": 1.5}}
    assert read.curves["g"].unit == "u"
    assert read.curves["g"].losses.tolist() == [0.3, 0.1, 0.0]
    a_RN, b_MR = store.factors(0, "g", 1)
    assert a_RN.equal(made["g"].tensors["a"][:1].bfloat16())
    assert b_MR.equal(made["g"].tensors["b"][:, :1].bfloat16())
    mean_N = store.tensor(0, "g", "mean")
    assert mean_N is not None
    assert mean_N.equal(made["g"].tensors["mean"])
    assert store.tensor(0, "g", "order") is None


@pytest.mark.parametrize("groups", [None, "[]", "{", '{"g": {}}', '{"g": {"unit": "u"}}'])
def test_a_file_without_curves_is_named(groups: str | None, tmp_path: Path) -> None:
    path = tmp_path / "layer_000.safetensors"
    metadata = None if groups is None else {"groups": groups}
    save_file({"x": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(CorruptFile, match=r"layer_000\.safe.* is damaged .*delete it and rerun"):
        OrderedStore(tmp_path).read(0)


def test_what_is_not_there_or_cut_short_is_named(tmp_path: Path) -> None:
    store = OrderedStore(tmp_path)
    store.write(0, some(), {"g": {}}, torch.float32)
    with pytest.raises(CorruptFile, match=r"layer_000\.safetensors is damaged"):
        store.factors(0, "another", 1)
    path = tmp_path / "layer_000.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptFile, match=r"layer_000\.safetensors .*delete it and rerun"):
        store.read(0)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensorfile, "save_file", full)
    with pytest.raises(SnapfitError, match=r"cannot write .*layer_000.*No space left"):
        OrderedStore(tmp_path).write(0, some(), {"g": {}}, torch.float32)
    assert not list(tmp_path.iterdir())
