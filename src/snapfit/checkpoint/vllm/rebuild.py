"""Attention with fewer heads, and absent sub-layers, in vLLM's own decoder layers.

vLLM's classes read the number of heads from the model's configuration, one for all layers, and
always build both sub-layers. So while they build, PyTorch tells us of every module that gets a
child: an attention module is given its own number of heads as soon as it has its first projection,
before it makes its cache, and a sub-layer that is absent is replaced as its layer receives it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.linear import LinearBase, QKVParallelLinear

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.structure import Structure

COUNTS = ("total_num_heads", "num_heads", "total_num_kv_heads", "num_kv_heads", "head_dim")
"""What an attention module must have to be given other numbers of heads."""

SIZES = ("q_size", "kv_size")


class Rebuilder:
    """Watches vLLM build a model until everything that `structure` asks for is done."""

    def __init__(self, structure: Structure) -> None:
        self._absent = dict(structure.absent)
        self._heads = dict(structure.heads)
        self._handle: Any = None
        if self._absent or self._heads:
            hook: Any = self._registered  # what it returns replaces the child; torch declares None
            self._handle = register_module_module_registration_hook(hook)

    def __getstate__(self) -> dict[str, Any]:
        """A hook belongs to the process that builds."""
        return {**vars(self), "_handle": None}

    def finish(self) -> None:
        """Stop watching.

        Raises:
            SnapfitError: something was not found in vLLM's model.

        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for name in (*self._absent, *self._heads):
            raise SnapfitError(
                f"vLLM's model class has no part {name} that could be changed; save the model as "
                "'standalone', or serve it with transformers"
            )

    def _registered(self, module: nn.Module, _: str, child: nn.Module | None) -> nn.Module | None:
        if isinstance(child, QKVParallelLinear):
            name = child.prefix.rpartition(".")[0]
            if name in self._heads:
                _set_heads(name, module, child, *self._heads.pop(name))
        elif child is not None and self._absent:
            name = _name_of(child)
            if name in self._absent:
                del self._absent[name]
                _forget_caches(child.modules())
                return Absent(name)
        return None


class Absent(nn.Module):
    """What remains of a removed sub-layer: zeros."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def forward(self, *arguments: Tensor, **named: Any) -> Tensor:
        """Zeros of the shape of `hidden_states`, which vLLM gives by name, or alone."""
        return torch.zeros_like(named["hidden_states"] if named else arguments[-1])

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take the empty tensor that keeps other loaders from loading the checkpoint.

        Raises:
            CorruptFile: it is not empty.

        """
        names = set()
        for name, tensor in weights:
            if tensor.numel():
                raise CorruptFile(
                    f"config.json says that {self._name} is absent, but the checkpoint has its "
                    f"{name}; the files are of different checkpoints"
                )
            names.add(name)
        return names


def _name_of(module: nn.Module) -> str:
    """Qualified name of a sub-layer, by those of its projections; '' if it has none."""
    for child in module.children():
        if isinstance(child, LinearBase):
            name: str = child.prefix.rpartition(".")[0]
            return name
    return ""


def _forget_caches(modules: Iterable[nn.Module]) -> None:
    """Take the attention layers among `modules` out of vLLM's list, so that they get no cache."""
    context = get_current_vllm_config().compilation_config.static_forward_context
    gone = {id(module) for module in modules if isinstance(module, AttentionLayerBase)}
    for name in [name for name, layer in context.items() if id(layer) in gone]:
        del context[name]


def _set_heads(name: str, attention: Any, projection: Any, heads: int, kv_heads: int) -> None:
    """Give an attention module that is being built other numbers of heads.

    Raises:
        SnapfitError: its class keeps them where we do not know, or workers cannot share them.

    """
    if not all(hasattr(attention, key) for key in (*COUNTS, *SIZES)) or hasattr(attention, "attn"):
        raise SnapfitError(
            f"{type(attention).__name__} of vLLM cannot have a number of heads for each layer, as "
            f"{name} has; serve it with transformers, or plan with --format stock"
        )
    ways = int(projection.tp_size)
    if heads % ways or (kv_heads % ways and ways % kv_heads):
        raise SnapfitError(
            f"{name} has {heads} heads and {kv_heads} key-value heads, which {ways} workers cannot "
            f"share; compress with --target ...,tp={ways}"
        )
    local, local_kv = heads // ways, max(1, kv_heads // ways)
    for key, value in zip(COUNTS, (heads, local, kv_heads, local_kv), strict=False):
        setattr(attention, key, value)
    attention.q_size, attention.kv_size = (
        count * attention.head_dim for count in (local, local_kv)
    )
