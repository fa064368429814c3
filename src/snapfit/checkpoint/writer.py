"""Write safetensors shards tensor by tensor, holding one tensor in memory at a time.

A safetensors file begins with a table of all its tensors. Room for the table is left at the
start, tensors are appended as they come, and the table is written last, padded with spaces as the
format allows. The usual writers need every tensor of a shard in memory first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from snapfit.core.files import write_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ROW = 192
"""Bytes of a row of the table beyond the tensor's name: dtype, shape and two offsets."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        params: elements of all tensors.
        bytes: their size.
        files: names of the weight files.

    """

    params: int
    bytes: int
    files: tuple[str, ...]


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Appends tensors to shards in a folder; `finish` names them as transformers does."""

    def __init__(self, folder: Path, names: Iterable[str], max_shard_size: int) -> None:
        """Start writing.

        Args:
            folder: where to; should be temporary, since an interrupted writer leaves parts.
            names: the tensors that may come (their number bounds the table's size).
            max_shard_size: bytes of tensors a shard; a larger tensor gets its own shard.

        """
        self._folder = folder
        self._room = 8 * ((64 + sum(len(json.dumps(n)) + _ROW for n in names) + 7) // 8)
        self._limit = max_shard_size
        self._shards: list[tuple[Path, list[str]]] = []
        self._stream: IO[bytes] | None = None
        self._table: dict[str, Any] = {}
        self._offset = 0
        self._params = 0
        self._bytes = 0

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:  # after an error; the folder is thrown away
            self._stream.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor.

        Raises:
            OSError: the disk is full.

        """
        data = tensor.detach().cpu().contiguous()
        full = self._offset > 0 and self._offset + data.nbytes > self._limit
        # Tensors are read in place, so each must start at a multiple of its element's size.
        if self._stream is None or full or self._offset % data.element_size():
            self._close_shard()
            self._open_shard()
        assert self._stream is not None
        self._stream.write(data.reshape(-1).view(torch.uint8).numpy().data)
        end = self._offset + data.nbytes
        self._table[name] = {
            "dtype": DTYPES[data.dtype],
            "shape": list(data.shape),
            "data_offsets": [self._offset, end],
        }
        self._offset = end
        self._params += data.numel()
        self._bytes += data.nbytes

    def finish(self) -> Written:
        """Complete the last shard, name the files and, if they are several, write the index."""
        self._close_shard()
        count = len(self._shards)
        weight_map: dict[str, str] = {}
        for number, (path, names) in enumerate(self._shards, start=1):
            target = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            path.rename(self._folder / target)
            weight_map.update(dict.fromkeys(names, target))
        if count > 1:
            totals = {"total_parameters": self._params, "total_size": self._bytes}
            ordered = dict(sorted(weight_map.items()))
            write_json(self._folder / INDEX, {"metadata": totals, "weight_map": ordered})
        files = tuple(sorted(set(weight_map.values())))
        return Written(params=self._params, bytes=self._bytes, files=files)

    def _open_shard(self) -> None:
        path = self._folder / f"shard-{len(self._shards):05d}.partial"
        self._stream = path.open("wb")
        self._stream.seek(8 + self._room)
        self._table = {"__metadata__": {"format": "pt"}}
        self._offset = 0

    def _close_shard(self) -> None:
        if self._stream is None:
            return
        header = json.dumps(self._table, separators=(",", ":")).encode()
        assert len(header) <= self._room
        with self._stream as stream:
            stream.seek(0)
            stream.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
            stream.flush()
            os.fsync(stream.fileno())
        names = [name for name in self._table if name != "__metadata__"]
        self._shards.append((Path(stream.name), names))
        self._stream = None
