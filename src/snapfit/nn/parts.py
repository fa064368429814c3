"""Stand-ins for parts of a decoder layer that a plan has removed, or has left fewer heads.

Shape suffixes: B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CACHES = ("past_key_values", "cache", "layer_past")
"""Names under which a decoder layer hands its attention the cache: transformers' before 5.24, since
then, and GPT-NeoX's."""


class AbsentPart(nn.Module):
    """What remains of an MLP or an expert that was removed: zeros.

    `guard` is the name of a parameter of the removed module. An empty tensor stays there on
    purpose: a loader that does not know this format finds that its shape does not fit and stops,
    instead of leaving the module randomly initialised without a word.

    Args:
        guard: e.g. 'up_proj.weight'; must not be empty.
        features: of the output, for a removed linear layer; those of the input when None.

    """

    def __init__(
        self,
        guard: str,
        *,
        features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        *path, leaf = guard.split(".")
        owner: nn.Module = self
        for name in path:
            inner = nn.Module()
            owner.add_module(name, inner)
            owner = inner
        empty = nn.Parameter(torch.empty(0, device=device, dtype=dtype), requires_grad=False)
        owner.register_parameter(leaf, empty)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(..., D) -> zeros (..., D), or of `features` in the last dimension."""
        features = hidden_states.shape[-1] if self.features is None else self.features
        return hidden_states.new_zeros(*hidden_states.shape[:-1], features)


class AbsentAttention(AbsentPart):
    """What remains of an attention module that was removed: zeros, and a count of the tokens.

    Masks and positions are made from the length of a layer's cache, the first layer's in most
    architectures. So one zero a token is cached: one head of one feature.
    """

    def __init__(self, guard: str, layer_idx: int, **options: Any) -> None:
        super().__init__(guard, **options)
        self.layer_idx = layer_idx

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, *_: Any, **named: Any
    ) -> tuple[Tensor, None]:
        """(B, T, D) -> zeros (B, T, D), and no attention weights."""
        cache = next((named[name] for name in CACHES if named.get(name) is not None), None)
        if cache is not None:
            zeros_B1T1 = hidden_states.new_zeros(*_token_shape(hidden_states))
            cache.update(zeros_B1T1, zeros_B1T1, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class FewerHeads:
    """The model's configuration as an attention module with fewer heads sees it.

    Some attention modules read the number of heads from the configuration while they run. All
    other settings stay the model's own, also when they are changed later.
    """

    def __init__(self, config: Any, *, heads: int, kv_heads: int) -> None:
        self.__dict__["_whole"] = config
        self.num_attention_heads = heads
        self.num_key_value_heads = kv_heads

    def __getattr__(self, name: str) -> Any:
        if name == "_whole":  # while it is being copied
            raise AttributeError(name)
        return getattr(self._whole, name)


def absent_like(old: nn.Module, *, attention: bool) -> AbsentPart:
    """The stand-in for `old`, on its device and in its dtype.

    Raises:
        ValueError: `old` has no parameter, so there is nothing to remove.

    """
    # Experts come last: their names differ between files and memory, and so guard nothing.
    parameters = sorted(old.named_parameters(), key=lambda item: "experts." in item[0])
    if not parameters:
        raise ValueError(f"{type(old).__name__} has no parameters")
    guard, parameter = parameters[0]
    options: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype}
    if isinstance(old, nn.Linear):
        options["features"] = old.out_features
    if attention:
        return AbsentAttention(guard, int(getattr(old, "layer_idx", 0)), **options)
    return AbsentPart(guard, **options)


def set_heads(attention: nn.Module, heads: int, kv_heads: int) -> None:
    """Tell an attention module how many heads its projections have left."""
    for names, count in (
        (("num_heads", "num_attention_heads"), heads),
        (("num_key_value_heads", "num_kv_heads"), kv_heads),
        (("num_key_value_groups",), heads // kv_heads),
    ):
        for name in names:
            if hasattr(attention, name):
                setattr(attention, name, count)
    if hasattr(attention, "config"):
        view: Any = FewerHeads(attention.config, heads=heads, kv_heads=kv_heads)
        attention.config = view


def _token_shape(hidden_BTD: Tensor) -> tuple[int, int, int, int]:
    return hidden_BTD.shape[0], 1, hidden_BTD.shape[1], 1
