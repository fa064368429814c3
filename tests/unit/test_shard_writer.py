"""Our own safetensors writer, read back by the reference reader."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from snapfit.checkpoint.writer import DTYPES, INDEX, SINGLE, ShardWriter, Written

Kinds = list[tuple[torch.dtype, tuple[int, ...]]]


def make(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def write(folder: Path, tensors: dict[str, torch.Tensor], limit: int = 1 << 30) -> Written:
    with ShardWriter(folder, tensors, limit) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        return writer.finish()


@settings(max_examples=60)
@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from(sorted(DTYPES, key=str)),
            st.lists(st.integers(0, 5), max_size=4).map(tuple),
        ),
        min_size=1,
        max_size=12,
    ),
    limit=st.integers(1, 600),
)
def test_every_bit_comes_back(
    kinds: Kinds, limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f'm.{i}."ü"': make(dtype, shape, i) for i, (dtype, shape) in enumerate(kinds)}
    written = write(folder, tensors, limit)
    read: dict[str, torch.Tensor] = {}
    for file in written.files:
        part = load_file(folder / file)
        sizes = [tensor.nbytes for tensor in part.values() if tensor.nbytes]
        assert len(sizes) <= 1 or sum(sizes) <= limit
        read.update(part)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    assert written.params == sum(t.numel() for t in tensors.values())
    assert written.bytes == sum(t.nbytes for t in tensors.values())
    assert (folder / INDEX).exists() == (len(written.files) > 1)
    assert {p.name for p in folder.iterdir()} - {INDEX} == set(written.files)


def test_odd_bytes_before_wider_elements_start_a_new_shard(tmp_path: Path) -> None:
    tensors = {"half": torch.ones(3, dtype=torch.bfloat16), "single": torch.ones(2)}
    assert len(write(tmp_path, tensors).files) == 2
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["weight_map"]["half"] != index["weight_map"]["single"]


def test_views_and_transposes_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    write(tmp_path, {"t": base.T, "v": base[1:, ::2]})
    read = load_file(tmp_path / SINGLE)
    assert torch.equal(read["t"], base.T)
    assert torch.equal(read["v"], base[1:, ::2])


def test_no_tensor_is_kept(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, ["x"], 1 << 30) as writer:
        tensor = torch.ones(100)
        seen = weakref.ref(tensor)
        writer.add("x", tensor)
        del tensor
        gc.collect()
        assert seen() is None
        assert writer.finish().params == 100
