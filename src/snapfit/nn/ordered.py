"""Ordered bases on disk: one file a layer, written once, sliced by every later plan.

A layer's file holds the factors of its groups in the model's dtype, the curves in float64 and the
groups' scalars. Planning reads only the curves; slicing reads only the prefixes that it needs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from snapfit.core.curve import Curve
from snapfit.core.errors import CorruptFile
from snapfit.nn.tensorfile import open_tensors, save_tensors

FACTORS = ("a", "b")
"""Tensors that are weights, and so are stored in the model's dtype."""


@dataclass(frozen=True, kw_only=True)
class Ordered:
    """A group's ordered basis and what each prefix is predicted to cost.

    Attributes:
        tensors: of a rank group 'a' (R, in) and 'b' (out, R): rank r keeps the first r components.
            Of other groups 'order' (full,), units by importance, and what the method adds.
        curve: predicted loss at the sizes that there are, and at the full size (where it is zero).

    """

    tensors: Mapping[str, Tensor]
    curve: Curve


@dataclass(frozen=True, kw_only=True)
class OrderedLayer:
    """Everything about one layer that planning needs: curves and scalars by group name."""

    curves: Mapping[str, Curve]
    summaries: Mapping[str, Mapping[str, float]]


class OrderedStore:
    """The ordered bases of one model under one method, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, layer: int) -> bool:
        """Whether the layer is complete: files appear whole or not at all."""
        return self._path(layer).exists()

    def write(
        self,
        layer: int,
        ordered: Mapping[str, Ordered],
        summaries: Mapping[str, Mapping[str, float]],
        dtype: torch.dtype,
    ) -> None:
        """Write one layer; factors in `dtype`, all else as it is.

        Raises:
            SnapfitError: the disk is full or the folder cannot be written.

        """
        tensors: dict[str, Tensor] = {}
        header: dict[str, object] = {}
        for name, item in ordered.items():
            for key, tensor in item.tensors.items():
                tensors[f"{name}/{key}"] = tensor.to(dtype) if key in FACTORS else tensor
            tensors[f"{name}/sizes"] = torch.from_numpy(np.array(item.curve.sizes))
            tensors[f"{name}/losses"] = torch.from_numpy(np.array(item.curve.losses))
            header[name] = {"unit": item.curve.unit, "summary": dict(summaries[name])}
        save_tensors(self._path(layer), tensors, {"groups": json.dumps(header)})

    def read(self, layer: int) -> OrderedLayer:
        """Curves and scalars of one layer, without its factors.

        Raises:
            CorruptFile: the file is damaged; it says which to delete.

        """
        with self._open(layer) as file:
            header = json.loads(file.metadata()["groups"])
            curves = {
                name: Curve(
                    sizes=file.get_tensor(f"{name}/sizes").numpy(),
                    losses=file.get_tensor(f"{name}/losses").numpy(),
                    unit=entry["unit"],
                )
                for name, entry in header.items()
            }
            summaries = {name: entry["summary"] for name, entry in header.items()}
        return OrderedLayer(curves=curves, summaries=summaries)

    def factors(self, layer: int, group: str, rank: int) -> tuple[Tensor, Tensor]:
        """The factor pair of `rank`: a (rank, in) and b (out, rank), read from disk.

        Raises:
            CorruptFile: the file is damaged; it says which to delete.

        """
        with self._open(layer) as file:
            a_RN = file.get_slice(f"{group}/a")[:rank]
            b_MR = file.get_slice(f"{group}/b")[:, :rank]
        return a_RN, b_MR.contiguous()

    def tensor(self, layer: int, group: str, key: str) -> Tensor | None:
        """What `order` left under `key`, such as 'order' of a width group; None if nothing.

        Raises:
            CorruptFile: the file is damaged; it says which to delete.

        """
        name = f"{group}/{key}"
        with self._open(layer) as file:
            found: Tensor | None = file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118
        return found

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer_{layer:03d}.safetensors"

    @contextlib.contextmanager
    def _open(self, layer: int) -> Iterator[Any]:
        path = self._path(layer)
        with open_tensors(path) as file:
            try:
                yield file
            except (AttributeError, KeyError, SafetensorError, TypeError, ValueError) as error:
                raise CorruptFile(f"{path} is damaged ({error!r}); delete it and rerun") from error
