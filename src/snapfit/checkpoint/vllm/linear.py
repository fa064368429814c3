"""The products of changed linear layers, in vLLM's own layers and by vLLM's own kernels.

Shape suffixes: M output features, N input features, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    LinearMethodBase,
    QKVParallelLinear,
    RowParallelLinear,
    UnquantizedLinearMethod,
)

from snapfit.checkpoint.vllm.shares import Part, Share, Span, share_of, split
from snapfit.checkpoint.vllm.weights import Loader, compute, make_holders, make_places
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.layout import Block, ModuleLayout

Named = tuple[str, ModuleLayout | None]
"""A layer of the checkpoint: its name, and its layout where it was changed."""


class SnapfitLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """Computes one layer of vLLM that holds changed layers of the checkpoint.

    vLLM asks for weights of the sizes that its configuration gives; the checkpoint's are taken.

    Args:
        named: the checkpoint's layers in it, in order.
        heads: (query heads, key-value heads) where the attention has fewer.

    """

    supports_pre_processed_weights = False

    def __init__(self, named: Sequence[Named], heads: tuple[int, int] | None) -> None:
        self._named = tuple(named)
        self._heads = heads
        self._plain = UnquantizedLinearMethod()
        self._missing: set[str] = set()
        self._share: Share | None = None

    def create_weights(
        self,
        layer: Any,
        *_: Any,
        params_dtype: torch.dtype,
        **__: Any,
    ) -> None:
        """Make the weights of this worker, and the places that checkpoint tensors are loaded by.

        Raises:
            SnapfitError: the sizes cannot be shared by the workers.

        """
        if layer.skip_bias_add:
            raise SnapfitError(
                f"{self._named[0][0]} leaves its bias to the next layer in vLLM, where the format "
                "'factored' has no place for it; save the model as 'standalone'"
            )
        by_row = isinstance(layer, RowParallelLinear)
        parts = [
            Part(
                name=name,
                layout=layout,
                spans=((0, layout.outputs),) if by_row else self._spans(layer, index, layout),
                bias=layer.has_bias or layout.bias,
            )
            for index, (name, layout) in enumerate(self._layouts(layer))
        ]
        share = share_of(parts)
        ways = int(layer.tp_size) if by_row else 1
        columns = split(parts[0].name, parts[0].layout.inputs, ways, layer.tp_rank if by_row else 0)
        # Workers that split the input add up their outputs: one of them adds the bias.
        biased = not by_row or layer.tp_rank == 0
        make_holders(layer, share, columns[1] - columns[0], params_dtype)
        self._share = share
        loader = Loader(layer, share, columns, biased=biased)
        self._missing = set(loader.expected)
        if get_current_vllm_config().load_config.load_format == "dummy":
            self._missing = set()
        make_places(layer, share, params_dtype, partial(self._load, loader))

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """(T, N) -> (T, M). The bias is this method's own, since its size may be."""
        assert self._share is not None
        return compute(layer, self._share, x, self._plain.apply)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Check that everything came, then let vLLM pack the weights for its kernels.

        Raises:
            CorruptFile: a tensor is missing.

        """
        if self._missing:
            raise CorruptFile(
                f"the checkpoint lacks {min(self._missing)}, or this vLLM loads it in a way that "
                "snapfit does not know; copy its weight files again, or try vllm 0.32"
            )
        layer.bias = None
        for holder in (layer.first, *layer.second):
            if holder.weight is not None:
                self._plain.process_weights_after_loading(holder)

    def _load(self, loader: Loader, leaf: str, tensor: Tensor, shard: Any) -> None:
        self._missing.discard(loader.load(leaf, tensor, shard))

    def _layouts(self, layer: Any) -> list[tuple[str, ModuleLayout]]:
        """Every layer of the checkpoint with its sizes; those of vLLM where it was not changed."""
        sizes = [layer.output_size]
        if len(self._named) > 1:
            sizes = self._logical(layer)
        return [
            (name, layout or _whole(layer.input_size, size))
            for (name, layout), size in zip(self._named, sizes, strict=True)
        ]

    def _logical(self, layer: Any) -> list[int]:
        """Output features of the matrices in a fused layer, over all workers."""
        if isinstance(layer, QKVParallelLinear):
            heads, kv_heads = self._heads or (layer.total_num_heads, layer.total_num_kv_heads)
            return [heads * layer.head_size, *[kv_heads * layer.head_size] * 2]
        return list(getattr(layer, "output_sizes", [layer.output_size]))

    def _spans(self, layer: Any, index: int, layout: ModuleLayout) -> tuple[Span, ...]:
        """Rows of a layer of the checkpoint that this worker computes."""
        if not isinstance(layer, ColumnParallelLinear):
            return ((0, layout.outputs),)
        name = self._named[index][0]
        sizes = self._logical(layer)
        if len(self._named) > 1:
            return (self._span(layer, name, index, layout.outputs, 0),)
        if sum(sizes) != layout.outputs:  # fused on disk and narrowed: all matrices alike
            sizes = [layout.outputs // len(sizes)] * len(sizes)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(
            self._span(layer, name, i, size, start)
            for i, (size, start) in enumerate(zip(sizes, starts, strict=True))
        )

    def _span(self, layer: Any, name: str, index: int, size: int, start: int) -> Span:
        ways, worker = int(layer.tp_size), int(layer.tp_rank)
        if isinstance(layer, QKVParallelLinear) and index > 0:
            kv_heads = size // layer.head_size
            if kv_heads < ways:  # workers hold copies of a key-value head
                if ways % kv_heads:
                    raise SnapfitError(f"{name}: {ways} workers cannot share {kv_heads} heads")
                ways, worker = kv_heads, worker // (ways // kv_heads)
        if isinstance(layer, QKVParallelLinear):
            split(f"{name} (in heads)", size // layer.head_size, ways, 0)
        return split(name, size, ways, worker, start)


def _whole(inputs: int, outputs: int) -> ModuleLayout:
    return ModuleLayout(inputs=inputs, blocks=(Block(rows=outputs, rank=None),))
