"""Tensors of the compressed model, each made when asked for from those of the source.

Shape suffixes: M output features, N input features, n removed input features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from snapfit.core.cuts import Cuts
from snapfit.core.errors import SnapfitError
from snapfit.core.renaming import Index, Names
from snapfit.core.structure import Structure
from snapfit.nn.factored import FactoredLinear
from snapfit.nn.reader import WeightReader


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """How a compressed model is made of its source.

    Attributes:
        structure: what it looks like.
        cuts: what is kept of the source's tensors.
        means: mean input (N,) of linear layers that gain a bias, by name in the source (FLAP).
        path: qualified name of the list of decoder layers.

    """

    structure: Structure
    cuts: Cuts = field(default_factory=Cuts)
    means: Mapping[str, Tensor] = field(default_factory=dict)
    path: str = "model.layers"

    @property
    def names(self) -> Names:
        """Between names of the source and of the compressed model."""
        return Names(path=self.path, layers=self.structure.layers, experts=self.cuts.experts)

    def output(self, name: str) -> str | None:
        """The name in the compressed model of a part of the source; None if it is gone."""
        new = self.names.output(name)
        gone = any(f"{new}.".startswith(f"{part}.") for part in self.structure.absent)
        return None if gone else new

    def narrows(self, module: str) -> bool:
        """Whether rows or columns of a module (of the compressed model) are cut."""
        source = self.names.sources(module)[0][0]
        return source in self.cuts.rows or source in self.cuts.cols

    def without_ranks(self) -> Blueprint:
        """The same model with its factors multiplied; what was only factored is unchanged then."""
        modules = {
            name: layout.dense()
            for name, layout in self.structure.modules.items()
            if self.narrows(name)
        }
        return replace(self, structure=replace(self.structure, modules=modules))


class TensorMaker:
    """Makes tensors of the compressed model by its names; at most a few are in memory.

    Args:
        reader: the source's weights.
        blueprint: what to make.
        dtype: of what is computed; sums are made in float32.

    """

    def __init__(self, reader: WeightReader, blueprint: Blueprint, dtype: torch.dtype) -> None:
        self._reader = reader
        self._known = frozenset(reader.names)
        self._means = blueprint.means
        self._cuts = blueprint.cuts
        self._names = blueprint.names
        self.dtype = dtype

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer as it is in the compressed model: merged, then cut.

        Raises:
            SnapfitError: the source has no such tensor.

        """
        return self._cut(self.source_name(name), self._merged(name))

    def has(self, name: str) -> bool:
        """Whether the source has a tensor of that name (in the compressed model)."""
        return self.source_name(name) in self._known

    def bias(self, module: str) -> Tensor:
        """The bias of a module that may have gained one: W[:, removed] mean[removed] + old.

        FLAP, arXiv 2312.11983, equation 8: what the removed inputs contribute on average.

        Raises:
            SnapfitError: there is neither an old bias nor a mean to make one of.

        """
        source = self.source_name(f"{module}.bias").removesuffix(".bias")
        old_M = self._merged(f"{module}.bias") if self.has(f"{module}.bias") else None
        mean_N, kept = self._means.get(source), self._cuts.cols.get(source)
        if mean_N is not None and kept is not None:
            weight_MN = self._merged(f"{module}.weight").float()
            removed = torch.from_numpy(_others(kept, weight_MN.shape[1]))
            gained_M = weight_MN[:, removed] @ mean_N.float()[removed]
            old_M = gained_M if old_M is None else old_M.float() + gained_M
        if old_M is None:
            raise SnapfitError(f"nothing says what the bias of {module} is; rerun the job")
        return self._cut(f"{source}.bias", old_M.to(self.dtype))

    def gains_bias(self, module: str) -> bool:
        """Whether the module has a mean of removed inputs."""
        source = self.source_name(module)
        return source in self._means and source in self._cuts.cols

    def factored(self, name: str, module: FactoredLinear) -> Iterator[tuple[str, Tensor]]:
        """What no method supplies of a factored layer: empty weight, biases, dense blocks."""
        yield f"{name}.weight", torch.empty(0, dtype=self.dtype)
        bias_M = self.bias(name) if _has_bias(module) else None
        start = 0
        for index, block in enumerate(module.layout.blocks):
            rows = slice(start, start + block.rows)
            start += block.rows
            part = f"{name}.b.{index}" if isinstance(module.b, nn.ModuleList) else f"{name}.b"
            if bias_M is not None:
                yield f"{part}.bias", bias_M[rows]
            if block.rank is None:
                yield f"{part}.weight", self.tensor(f"{name}.weight")[rows]

    def cut_factor(self, name: str, tensor: Tensor) -> Tensor:
        """A factor of the whole matrix, '<module>.a.weight' or '<module>.b.weight', cut like it."""
        module, _, leaf = name.rpartition(".")
        module, _, factor = module.rpartition(".")
        source = self.source_name(module)
        kept = {"a": self._cuts.cols, "b": self._cuts.rows}.get(factor, {}).get(source)
        dim = 1 if factor == "a" else 0
        if leaf != "weight" or kept is None or tensor.shape[dim] == len(kept):
            return tensor
        return tensor.index_select(dim, torch.from_numpy(kept))

    def source_name(self, name: str) -> str:
        """The name in the source; of a merged layer, in its base."""
        return self._names.sources(name)[0][0]

    def _merged(self, name: str) -> Tensor:
        sources = self._names.sources(name)
        if len(sources) == 1 and sources[0][1] == 1.0:
            return self._reader.get(sources[0][0])
        total: Tensor | None = None
        for source, coefficient in sources:
            tensor = self._reader.get(source)
            if total is None:
                total = torch.zeros_like(tensor, dtype=torch.float32)
            if tensor.shape != total.shape:
                raise SnapfitError(f"{source} cannot be merged into {sources[0][0]}: other shape")
            total.add_(tensor.float(), alpha=coefficient)
        assert total is not None
        return total.to(tensor.dtype)

    def _cut(self, source: str, tensor: Tensor) -> Tensor:
        if source in self._cuts.entries:
            return tensor[torch.from_numpy(self._cuts.entries[source])]
        module, _, leaf = source.rpartition(".")
        rows, cols = self._cuts.rows.get(module), self._cuts.cols.get(module)
        if leaf in {"weight", "bias"} and rows is not None:
            tensor = tensor[torch.from_numpy(rows)]
        if leaf == "weight" and cols is not None:
            tensor = tensor[:, torch.from_numpy(cols)]
        return tensor


def _has_bias(module: FactoredLinear) -> bool:
    return any(name.endswith("bias") for name, _ in module.named_parameters())


def _others(kept: Index, count: int) -> Index:
    """Indices below `count` that are not kept."""
    mask = np.ones(count, dtype=bool)
    mask[kept] = False
    return np.flatnonzero(mask)
