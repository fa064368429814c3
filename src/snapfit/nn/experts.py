"""Mixture-of-experts layers with one `nn.Linear` a matrix.

transformers 5 stores the experts of a layer as two three-dimensional parameters. Here each
expert has its own `gate`, `up` and `down` layers, so that statistics, groups and factored layers
work on experts exactly as on any other linear layer.

The names are `<experts>.<i>.gate`, `.up` and `.down`, *not* `gate_proj` or `w1`: transformers
fuses keys of those patterns when it loads and splits them when it saves, and would try to stack
factors of different ranks. These names match no pattern, so they go to disk and back untouched.

Shape suffixes: T tokens, K experts a token, E experts, H hidden, I width of an expert.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from snapfit.nn.modules import replace_module

ARGUMENTS = ("hidden_states", "top_k_index", "top_k_weights")
"""What transformers' sparse blocks pass to their experts."""

FUSED_KEYS = ("gate_up_proj", "down_proj")
"""Parameters of transformers' fused experts, which an unfused checkpoint does not have."""


class Expert(nn.Module):
    """One expert: down(act(gate x) * up x)."""

    def __init__(
        self,
        hidden: int,
        width: int,
        act_fn: Callable[[Tensor], Tensor],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, width, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(hidden, width, bias=False, device=device, dtype=dtype)
        self.down = nn.Linear(width, hidden, bias=False, device=device, dtype=dtype)
        self.act_fn = act_fn

    def forward(self, x_TH: Tensor) -> Tensor:
        """(T, H) -> (T, H)."""
        y_TH: Tensor = self.down(self.act_fn(self.gate(x_TH)) * self.up(x_TH))
        return y_TH


class UnfusedExperts(nn.Module):
    """The experts of one layer; children '0' ... 'E-1' are `Expert`s."""

    def __init__(
        self,
        count: int,
        hidden: int,
        width: int,
        act_fn: Callable[[Tensor], Tensor],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_experts = count
        self.hidden_dim = hidden
        self.intermediate_dim = width
        for index in range(count):
            self.add_module(str(index), Expert(hidden, width, act_fn, device=device, dtype=dtype))

    @property
    def experts(self) -> list[Expert]:
        """The experts, in the order of the router's indices."""
        return [child for child in self.children() if isinstance(child, Expert)]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts.

        Args:
            hidden_states: (T, H).
            top_k_index: (T, K) expert indices; indices >= E (expert parallelism) are skipped.
            top_k_weights: (T, K).

        Returns:
            (T, H), in the dtype of `hidden_states`.

        """
        output_TH = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self.experts):
            token, slot = torch.where(top_k_index == index)
            if not len(token):
                continue
            part = expert(hidden_states[token])
            part = part * top_k_weights[token, slot, None]
            output_TH.index_add_(0, token, part.to(output_TH.dtype))
        return output_TH


def is_fused_experts(module: nn.Module) -> bool:
    """Whether `module` holds experts in the layout and with the formula of Mixtral, (E, 2I, H).

    transformers lets an architecture override the gate (`_apply_gate`) or the whole forward pass;
    those are not recognised, since `Expert` would compute something else.
    """
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(gate_up, nn.Parameter) and isinstance(down, nn.Parameter)):
        return False
    plain = not (
        getattr(module, "has_bias", False)
        or getattr(module, "is_transposed", False)
        or not getattr(module, "is_concatenated", True)
        or not getattr(module, "has_gate", True)
        or _gate_name(module) != "_default_apply_gate"
        or list(inspect.signature(module.forward).parameters) != list(ARGUMENTS)
    )
    return (
        plain
        and gate_up.ndim == down.ndim == 3
        and gate_up.shape == (down.shape[0], 2 * down.shape[2], down.shape[1])
        and callable(getattr(module, "act_fn", None))
        and len(list(module.parameters(recurse=False))) == 2
    )


def _gate_name(module: nn.Module) -> str:
    return getattr(getattr(type(module), "_apply_gate", None), "__name__", "_default_apply_gate")


@torch.no_grad()
def unfuse_experts(model: nn.Module) -> tuple[str, ...]:
    """Replace fused experts by `UnfusedExperts` of the same weights, in place.

    Works on any device, the meta device included. Layouts other than Mixtral's (transposed,
    interleaved, with biases) are left alone.

    Returns:
        The qualified names of the replaced modules.

    """
    names = tuple(name for name, module in model.named_modules() if is_fused_experts(module))
    for name in names:
        old: Any = model.get_submodule(name)
        gate_up_EJH, down_EHI = old.gate_up_proj, old.down_proj
        count, hidden, width = down_EHI.shape
        new = UnfusedExperts(
            count, hidden, width, old.act_fn, device=down_EHI.device, dtype=down_EHI.dtype
        )
        if not down_EHI.is_meta:
            for index, expert in enumerate(new.experts):
                expert.gate.weight.copy_(gate_up_EJH[index, :width])
                expert.up.weight.copy_(gate_up_EJH[index, width:])
                expert.down.weight.copy_(down_EHI[index])
        new.train(old.training)
        replace_module(model, name, new)
    return names


def ignore_guards(model: Any) -> None:
    """Do not let a transformers model report the guards of unfused experts as unexpected."""
    patterns = {
        rf"{re.escape(name)}\.({'|'.join(FUSED_KEYS)})$"
        for name, module in model.named_modules()
        if isinstance(module, UnfusedExperts)
    }
    known = model._keys_to_ignore_on_load_unexpected or ()
    model._keys_to_ignore_on_load_unexpected = {*known, *patterns}
