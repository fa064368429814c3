"""What a statistic is. To add one, add a file in `statistics/` with a class `Accumulator`.

Means are a token. An expert of a mixture sees some of the tokens only: the moments of *inputs* are
divided by all calibration tokens, those of *gradients* by the tokens that reached the module. The
product of the two then is what a token of text costs, routed there or not, and methods need not
know about experts. Without experts both counts are the same.

Shape suffixes: S tokens of a micro-batch that reached the module, N inputs, M outputs.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Protocol, cast

from snapfit.calib import statistics
from snapfit.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.nn.labels import Labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A micro-batch at one linear layer.

    Attributes:
        x_SN: input.
        y_SM: output.
        g_SM: gradient of the summed token loss at the output; None in a forward sweep.
        weight_MN: the layer's weight, in memory as long as something refers to it.
        routing_S: the router's weights, of an expert; None where every token is read.
        head: features of an attention head, where the inputs are heads; else all inputs.

    """

    x_SN: Tensor
    y_SM: Tensor
    g_SM: Tensor | None
    weight_MN: Tensor
    routing_S: Tensor | None
    head: int


class Statistic(Protocol):
    """An accumulator for one module, or for all that read one input.

    Attributes:
        gradients: needs `Sample.g_SM`, hence a backward sweep.
        shared: depends on the input alone; kept once for modules that read one tensor.
        single: each update must hold exactly one sequence.

    A class whose gradients are those of the text's own next tokens, rather than of labels sampled
    from the model, has the attribute `labels = "text"`.
    """

    gradients: bool
    shared: bool
    single: bool

    def __init__(self, *, outputs: int, inputs: int) -> None: ...

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""

    def result(self, *, total: int) -> dict[str, Tensor]:
        """Final tensors by name; `total` counts all calibration tokens."""


def labels_of(kind: type[Statistic]) -> Labels:
    """Whose labels the gradients of a statistic are about."""
    return cast("Labels", getattr(kind, "labels", "sampled"))


def names() -> list[str]:
    """All statistics that there are."""
    return sorted(module.name for module in pkgutil.iter_modules(statistics.__path__))


def statistic(name: str) -> type[Statistic]:
    """The class of a statistic.

    Raises:
        UsageError: there is none of that name.

    """
    if name not in names():
        close = get_close_matches(name, names(), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError(f"unknown statistic {name!r}; {hint}there are: {', '.join(names())}")
    module = importlib.import_module(f"{statistics.__name__}.{name}")
    return cast("type[Statistic]", module.Accumulator)
