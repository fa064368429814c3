"""What makes a transformers class load a `standalone` checkpoint; see `checkpoint.standalone`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snapfit.checkpoint.format import guard_keys, read_format
from snapfit.nn.experts import ignore_guards, unfuse_experts
from snapfit.nn.factored import FactoredLinear
from snapfit.nn.surgery import reshape


class Compressed:
    """Comes before a class of transformers: its model gets the shapes of `config.snapfit`.

    Args:
        config: of the checkpoint, with the entry 'snapfit'.

    """

    _supports_attention_backend = True

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        structure = read_format(config.snapfit)
        config.base_model_tp_plan = _sharded(config.base_model_tp_plan or {})
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if structure.unfused:
            unfuse_experts(self)  # type: ignore[arg-type]
            ignore_guards(self)
        prefix = self.base_model_prefix  # type: ignore[attr-defined]
        if prefix and not hasattr(self, prefix):  # the decoder without its head
            structure = structure.without_prefix(f"{prefix}.")
        reshape(self, structure)  # type: ignore[arg-type]
        _tell_apart(self)  # type: ignore[arg-type]

    def save_pretrained(
        self,
        save_directory: str | Path,
        *args: Any,
        state_dict: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers', with the keys that make a load without this file fail."""
        state = dict(self.state_dict()) if state_dict is None else dict(state_dict)  # type: ignore[attr-defined]
        guards = guard_keys(self, self.dtype)  # type: ignore[arg-type, attr-defined]
        return super().save_pretrained(  # type: ignore[misc]
            save_directory, *args, state_dict={**state, **guards}, **kwargs
        )


def _tell_apart(model: nn.Module) -> None:
    """Give modules with factored layers a class of their own, one for each set of them.

    vLLM's transformers backend joins projections that read the same input into one. It decides by
    a module's class and the names of its children, once for all layers, and would take the
    factored projections of one layer for the dense ones of another.
    """
    classes: dict[tuple[type, tuple[str, ...]], type] = {}
    for module in list(model.modules()):
        names = tuple(n for n, m in module.named_children() if isinstance(m, FactoredLinear))
        if names:
            key = (type(module), names)
            if key not in classes:
                classes[key] = type("_".join([type(module).__name__, *names]), key[:1], {})
            module.__class__ = classes[key]


def _sharded(plan: Mapping[str, str]) -> dict[str, str]:
    """A tensor-parallel plan that covers factors too.

    A layer that is split by rows keeps its first factor whole and splits the second; one that is
    split by columns splits the first and keeps the second whole. Ranks need not be divisible.
    """
    factors = {"colwise": "b", "rowwise": "a"}
    split = {f"{name}.{factors[how]}": how for name, how in plan.items() if how in factors}
    return {**plan, **split}
