"""The files that hold a checkpoint's weights, checked by their headers before anything is read.

A safetensors file is 8 bytes (little-endian header length), a JSON header with every tensor's
dtype, shape and byte range, then the bytes. Comparing the ranges with the file's size finds every
truncated download in milliseconds, without reading a weight.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2,
    "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a shard: its safetensors dtype name and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """All weight files of a checkpoint.

    Attributes:
        files: in name order.
        entries: every key on disk, with the file that holds it.

    """

    files: tuple[Path, ...]
    entries: Mapping[str, tuple[Path, Entry]]

    def main_dtype(self) -> str:
        """The safetensors dtype that most elements are stored in."""
        counts: dict[str, int] = {}
        for _, entry in self.entries.values():
            counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.numel
        return max(counts, key=lambda dtype: (counts[dtype], dtype))


def find_shards(folder: Path) -> Shards:
    """Find and check a checkpoint's safetensors files.

    Raises:
        SnapfitError: there are none, or only formats that are not read.
        CorruptFile: a shard named in the index is missing, or a file is truncated.

    """
    files = _weight_files(folder)
    entries = {key: (path, entry) for path in files for key, entry in read_header(path).items()}
    if not entries:
        raise CorruptFile(f"{files[0]} holds no tensors; download the model again")
    return Shards(files=files, entries=entries)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / INDEX
    if index.is_file():
        return _indexed_files(folder, index)
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    pickles = sorted(p.name for s in ("*.bin", "*.pt", "*.pth") for p in folder.glob(s))
    if pickles:
        raise SnapfitError(
            f"{folder} holds its weights only as pickle files ({pickles[0]}), which can run code "
            "when opened and are refused; convert them on a machine that you trust: "
            "AutoModelForCausalLM.from_pretrained(old).save_pretrained(new)"
        )
    others = sorted(p.name for s in ("*.gguf", "*.safetensors", "*.h5") for p in folder.glob(s))
    found = f"only {others[0]}" if others else "no weights"
    raise SnapfitError(
        f"{folder} has {found}; expected {SINGLE} or {INDEX}, as save_pretrained writes them"
    )


def _indexed_files(folder: Path, index: Path) -> tuple[Path, ...]:
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index} has no 'weight_map'; download the model again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CorruptFile(f"{index} names {name!r}, which is outside the model's folder")
        if not (folder / name).is_file():
            raise CorruptFile(
                f"{folder} lacks {name}, which {INDEX} names; download the missing shard"
            )
    return tuple(folder / name for name in names)


def read_header(path: Path) -> dict[str, Entry]:
    """Tensors of one safetensors file, checked against the file's size.

    Raises:
        CorruptFile: the file is truncated or is no safetensors file.

    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise CorruptFile(f"{path} is truncated or no safetensors file; download it again")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        entries = {
            key: Entry(dtype=str(value["dtype"]), shape=tuple(int(n) for n in value["shape"]))
            for key, value in tensors.items()
        }
        ranges = {
            key: (int(v["data_offsets"][0]), int(v["data_offsets"][1]))
            for key, v in tensors.items()
        }
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise CorruptFile(
            f"{path} has an unreadable header ({error}); download it again"
        ) from error
    needed = 8 + length + max((stop for _, stop in ranges.values()), default=0)
    if size != needed:
        raise CorruptFile(
            f"{path} is {size:,} bytes but its header describes {needed:,}; download it again"
        )
    for key, (start, stop) in ranges.items():
        entry = entries[key]
        width = ITEM_BYTES.get(entry.dtype)
        if width is not None and stop - start != width * entry.numel:
            raise CorruptFile(
                f"{path}: tensor {key!r} has {stop - start} bytes, its shape needs "
                f"{width * entry.numel}; download it again"
            )
    return entries
