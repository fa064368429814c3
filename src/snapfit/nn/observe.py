"""What every linear layer of a decoder layer read, wrote and was blamed for.

Shape suffixes: x (..., N) input, y (..., M) output, g (..., M) gradient of the summed token loss,
T tokens of a micro-batch, S those that count, K experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from snapfit.core.errors import SnapfitError
from snapfit.nn.experts import UnfusedExperts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """One call of one linear layer.

    Attributes:
        module: qualified name in the model.
        source: index, within this micro-batch, of the tensor that was read. Calls with equal
            sources read one and the same tensor, so statistics of the input can be shared.
        x: input, (..., N), detached.
        y: output, (..., M); part of the graph when gradients are on.
        g: gradient at the output, (..., M), or None in a forward sweep.
        tokens: of an expert, which tokens of the micro-batch it was given; None: all, in order.
        routing: of an expert, the router's weight of each of its rows (S,); None: 1 each.
        head: features of an attention head, of a module that reads heads; else all inputs.
        weight: the module's weight (M, N), not a copy.

    """

    module: str
    source: int
    x: Tensor
    y: Tensor
    g: Tensor | None = None
    tokens: Tensor | None = None
    routing: Tensor | None = None
    head: int = 0
    weight: Tensor | None = None


class LinearObserver:
    """Hooks on the linear layers below `root`; a context manager.

    Sharing is found by identity of the input tensor, not by tables of names, so that it holds for
    any architecture: experts share an input only if they really read the same rows. Inputs are
    kept alive until `take`, because the address of a freed tensor is soon given to another.
    """

    def __init__(
        self, root: nn.Module, prefix: str, *, modules: Collection[str] | None = None
    ) -> None:
        self._linears = {
            f"{prefix}.{name}": module
            for name, module in root.named_modules()
            if isinstance(module, nn.Linear) and (modules is None or f"{prefix}.{name}" in modules)
        }
        self._experts = {
            f"{prefix}.{name}": module
            for name, module in root.named_modules()
            if isinstance(module, UnfusedExperts)
        }
        self._heads = {
            f"{prefix}.{name}": head_features(root.get_submodule(name.rpartition(".")[0]), module)
            for name, module in root.named_modules()
            if f"{prefix}.{name}" in self._linears
        }
        self._routed: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles: list[RemovableHandle] = []
        self._sources: dict[tuple[object, ...], int] = {}
        self._seen: list[Seen] = []

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out features, in features) of every observed module."""
        return {name: (m.out_features, m.in_features) for name, m in self._linears.items()}

    def take(self) -> list[Seen]:
        """Calls since the last `take`, in order; forgets them."""
        seen, self._seen, self._sources = self._seen, [], {}
        return seen

    def __enter__(self) -> Self:
        for name, module in self._linears.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        for name, experts in self._experts.items():
            self._handles.append(experts.register_forward_pre_hook(self._routing(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.take()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        expert = name.rpartition(".")[0]

        def record(module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            x = inputs[0].detach()
            if x.numel() == 0:  # an expert without tokens; all empty tensors have one address
                return
            # The version tells an in-place change between two reads of one buffer.
            key = (x.data_ptr(), tuple(x.shape), x.stride(), inputs[0]._version)
            source = self._sources.setdefault(key, len(self._sources))
            tokens, routing = self._routed.get(expert, (None, None))
            self._seen.append(
                Seen(
                    module=name,
                    source=source,
                    x=x,
                    y=y,
                    tokens=tokens,
                    routing=routing,
                    head=self._heads[name],
                    weight=cast("nn.Linear", module).weight.detach(),
                )
            )

        return record

    def _routing(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            chosen_TK, weights_TK = inputs[1:]
            for index, _ in enumerate(cast("UnfusedExperts", module).experts):
                token, slot = torch.where(chosen_TK == index)
                self._routed[f"{name}.{index}"] = token, weights_TK[token, slot].detach()

        return record


def counted(seen: list[Seen], mask_bT: Tensor) -> list[Seen]:
    """The calls with the tokens that count only, as rows: x (S, N), y and g (S, M).

    Calls that are left without tokens are dropped. Sharing of inputs is kept.

    Raises:
        SnapfitError: a module reads other rows than the tokens in their order.

    """
    mask_T = mask_bT.flatten()
    inputs: dict[int, Tensor] = {}
    kept = []
    for call in seen:
        mask = mask_T.to(call.x.device)
        if call.tokens is not None:
            mask = mask[call.tokens]
        if call.x.shape[:-1].numel() != len(mask):
            raise SnapfitError(
                f"{call.module} does not read one row a token, so that which of them count cannot "
                "be told; calibrate without a chat template or prompts"
            )
        if not mask.any():
            continue
        if call.source not in inputs:
            inputs[call.source] = call.x.flatten(0, -2)[mask]
        y, g = (None if t is None else t.flatten(0, -2)[mask] for t in (call.y, call.g))
        assert y is not None
        routing = None if call.routing is None else call.routing[mask]
        kept.append(replace(call, x=inputs[call.source], y=y, g=g, routing=routing))
    return kept


def with_gradients(seen: list[Seen], gradients: Sequence[Tensor]) -> list[Seen]:
    """Attach to each call the gradient at its output, and let go of the graph."""
    return [replace(call, y=call.y.detach(), g=g) for call, g in zip(seen, gradients, strict=True)]


def head_features(holder: nn.Module, module: nn.Linear) -> int:
    """Features of one head, of a linear layer in `holder` whose inputs are heads; else all inputs.

    Read off the attention module, which knows better than the configuration where layers differ.
    """
    for attribute in ("head_dim", "head_size"):
        features = getattr(holder, attribute, None)
        if isinstance(features, int) and features > 0 and module.in_features % features == 0:
            return features
    return module.in_features
