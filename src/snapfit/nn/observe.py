"""What every linear layer of a decoder layer read, wrote and was blamed for.

Shape suffixes: x (..., N) input, y (..., M) output, g (..., M) gradient of the summed token loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

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

    """

    module: str
    source: int
    x: Tensor
    y: Tensor
    g: Tensor | None = None


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
        def record(_module: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            x = inputs[0].detach()
            if x.numel() == 0:  # an expert without tokens; all empty tensors have one address
                return
            # The version tells an in-place change between two reads of one buffer.
            key = (x.data_ptr(), tuple(x.shape), x.stride(), inputs[0]._version)
            source = self._sources.setdefault(key, len(self._sources))
            self._seen.append(Seen(module=name, source=source, x=x, y=y))

        return record


def with_gradients(seen: list[Seen], gradients: Sequence[Tensor]) -> list[Seen]:
    """Attach to each call the gradient at its output, and let go of the graph."""
    return [replace(call, y=call.y.detach(), g=g) for call, g in zip(seen, gradients, strict=True)]
