"""The weights of a changed layer of vLLM, and the way of checkpoint tensors into them.

Shape suffixes: M output features, N input features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snapfit.checkpoint.vllm.shares import Part, Share, Span
from snapfit.core.errors import CorruptFile


class _Holder(nn.Module):
    """A weight, and perhaps a bias, as vLLM's unquantised method wants them."""

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
        zeros = torch.zeros(rows, dtype=dtype)
        self.bias = nn.Parameter(zeros, requires_grad=False) if bias else None


class _Nothing(nn.Module):
    """In the place of the second factor of a dense block."""

    weight = None
    bias = None


class _Place(nn.Module):
    """A node in the names of checkpoint tensors."""


def make_holders(layer: Any, share: Share, columns: int, dtype: torch.dtype) -> None:
    """Uninitialised weights: `first`, and in `second` one an output.

    Args:
        layer: of vLLM.
        share: what this worker computes.
        columns: input features that it reads.
        dtype: of the weights.

    """
    biased = any(share.parts[output.part].bias and output.dense for output in share.outputs)
    layer.first = _Holder(share.first, columns, dtype, bias=biased)
    layer.second = nn.ModuleList(
        _Nothing()
        if output.dense
        else _Holder(
            output.size,
            output.hidden[1] - output.hidden[0],
            dtype,
            bias=share.parts[output.part].bias,
        )
        for output in share.outputs
    )


def make_places(
    layer: Any, share: Share, dtype: torch.dtype, load: Callable[[str, Tensor, Any], None]
) -> None:
    """Empty parameters under the checkpoint's names, whose loaders put tensors where they belong.

    The bias of a layer that is not factored is found under 'b.bias', see `SnapfitConfig`: vLLM
    makes `bias` itself, of a size that need not be the checkpoint's.
    """
    names = {"weight", "a.weight", "b.weight", "b.bias"}
    for part in share.parts:
        if len(part.layout.blocks) > 1:
            for index in range(len(part.layout.blocks)):
                names |= {f"b.{index}.weight", f"b.{index}.bias"}
    for name in sorted(names):
        *path, leaf = name.split(".")
        owner: Any = layer
        for step in path:
            if step not in owner._modules:
                owner.add_module(step, _Place())
            owner = owner._modules[step]
        place: Any = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        place.weight_loader = _placed(load, name)
        owner.register_parameter(leaf, place)


def _placed(load: Callable[[str, Tensor, Any], None], name: str) -> Callable[..., None]:
    def weight_loader(_: nn.Parameter, tensor: Tensor, shard: Any = None) -> None:
        load(name, tensor, shard)

    return weight_loader


def compute(
    layer: Any, share: Share, x: Tensor, product: Callable[[Any, Tensor, Tensor | None], Tensor]
) -> Tensor:
    """What a worker computes of a layer: (..., N) -> (..., M).

    Args:
        layer: with its holders.
        share: as the holders were made for.
        x: input features of this worker.
        product: (holder, input, bias) -> output of a linear layer.

    """
    first = product(layer.first, x, layer.first.bias)
    found = []
    for output, second in zip(share.outputs, layer.second, strict=True):
        start, stop = output.hidden
        part = first if stop - start == first.shape[-1] else first[..., start:stop]
        found.append(part if output.dense else product(second, part, second.bias))
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


class Loader:
    """Copies tensors of the checkpoint into the holders of a layer.

    Args:
        layer: of vLLM, with its holders.
        share: what this worker computes.
        columns: input features that it reads.
        biased: whether it adds the biases.

    """

    def __init__(self, layer: Any, share: Share, columns: Span, *, biased: bool) -> None:
        self._layer = layer
        self._share = share
        self._columns = columns
        self._biased = biased
        self.expected = frozenset(name for part in share.parts for name in _expected(part))

    def load(self, leaf: str, tensor: Tensor, shard: Any) -> str:
        """Copy what this worker needs of a tensor; the tensor's name in the checkpoint.

        Raises:
            CorruptFile: it has another shape than the configuration says, or no place.

        """
        index = self._part(shard)
        part = self._share.parts[index]
        name = f"{part.name}.{leaf}"
        if name not in self.expected:
            raise CorruptFile(f"config.json has no place for {name}; it is another checkpoint's")
        step, _, kind = leaf.rpartition(".")
        if not step and part.layout.ranks:
            _check(name, tensor, (0,))
        elif step == "a":
            _check(name, tensor, (sum(part.layout.ranks), part.layout.inputs))
            self._load_first_factors(index, tensor)
        else:
            # A block of its own, or all of a layer that is not factored.
            blocks = [int(step[2:])] if step.startswith("b.") else range(len(part.layout.blocks))
            self._load_rows(name, index, blocks, tensor, bias=kind == "bias")
        return name

    def _part(self, shard: Any) -> int:
        """Index of the part that vLLM calls 'q', 'k', 'v', 0, 1, ...; None is the only one."""
        if shard is None:
            return 0
        return {"q": 0, "k": 1, "v": 2}[shard] if isinstance(shard, str) else int(shard)

    def _load_first_factors(self, index: int, a_RN: Tensor) -> None:
        first = self._layer.first.weight.data
        for (part, _), copy in self._share.factors.items():
            if part == index:
                rows_RN = a_RN[slice(*copy.rows), slice(*self._columns)]
                first[copy.to : copy.to + len(rows_RN)].copy_(rows_RN)

    def _load_rows(
        self, name: str, index: int, blocks: Sequence[int], tensor: Tensor, *, bias: bool
    ) -> None:
        layout = self._share.parts[index].layout
        offsets, total = {}, 0
        for block in blocks:
            offsets[block] = total
            total += layout.blocks[block].rows
        rank = layout.blocks[blocks[0]].rank
        width = layout.inputs if rank is None else rank
        _check(name, tensor, (total,) if bias else (total, width))
        for output, second in zip(self._share.outputs, self._layer.second, strict=True):
            if output.part != index or output.block not in offsets or (bias and not self._biased):
                continue
            offset = offsets[output.block]
            rows = torch.cat([tensor[offset + low : offset + high] for low, high in output.rows])
            holder = self._layer.first if output.dense else second
            target = (holder.bias if bias else holder.weight).data
            if output.dense:
                target = target[slice(*output.hidden)]
                rows = rows if bias else rows[:, slice(*self._columns)]
            target.copy_(rows)


def _expected(part: Part) -> set[str]:
    """Names of the tensors that must come; the empty weight of a factored layer too."""
    names = {f"{part.name}.weight"}
    if not part.layout.ranks:
        return {*names, f"{part.name}.b.bias"} if part.bias else names
    count = len(part.layout.blocks)
    stems = ["b"] if count == 1 else [f"b.{index}" for index in range(count)]
    names |= {f"{part.name}.a.weight", *(f"{part.name}.{stem}.weight" for stem in stems)}
    return {*names, *(f"{part.name}.{stem}.bias" for stem in stems if part.bias)}


def _check(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CorruptFile(
            f"{name} is {list(tensor.shape)} in the weight files, config.json says {list(shape)}; "
            "the files are of different checkpoints"
        )
