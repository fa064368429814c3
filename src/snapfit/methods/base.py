"""What a method is. To add one, add a file beside this one; its name is the method's name.

The file defines one class named `Compressor` that satisfies `RankMethod`, `WidthMethod` or
`DepthMethod`, as its `kind` says. Its dataclass fields are the method's settings
(`--set name=value`), its docstring is the method's page in the docs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from snapfit.core.curve import Curve
from snapfit.core.space import Group, Space
from snapfit.nn.ordered import Ordered

if TYPE_CHECKING:
    from snapfit.core.schedule import Schedule
    from snapfit.methods._depth import DepthView

MethodKind = Literal["rank", "width", "depth"]

Stats = Mapping[str, Tensor]
"""Statistics of one module, by the names in `Method.needs`."""

Segments = Mapping[str, tuple[tuple[str, int, int], ...]]
"""Row segments (role, start, stop) by module name, one per head where heads are known."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What a method's own (unaligned) allocation may look at.

    Attributes:
        space: the groups.
        curves: each group's curve.
        summaries: each group's scalars: importance proxies and what the method's `summarise` gave.
        budget: parameters that the groups may use together.
        perplexity: calibration perplexity with one group at one rank, all else dense.
        importance: for widths: each group's scores a unit, (full,), most important first.

    """

    space: Space
    curves: Mapping[str, Curve]
    summaries: Mapping[str, Mapping[str, float]]
    budget: int
    perplexity: Callable[[str, int], float]
    importance: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class Method(Protocol):
    """What all methods have.

    Attributes:
        kind: what the method decides: a rank a matrix, a width a part of a layer, or layers.
        needs: statistics that it reads; file names in `calib/statistics`.
        unit: the unit of the curves; only 'nats' may be added across groups.

    """

    kind: ClassVar[MethodKind]
    needs: frozenset[str]
    unit: str

    def restrict(self, space: Space, segments: Segments) -> Space:
        """The part of the space that the method decides.

        Raises:
            SnapfitError: the architecture has nothing for this method.

        """


@runtime_checkable
class RankMethod(Method, Protocol):
    """A compressor that factors matrices."""

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:
        """Order one group's basis, up to its break-even rank.

        Raises:
            SnapfitError: weights or statistics are not finite.

        """

    def summarise(self, group: Group, weight_MN: Tensor, stats: Stats) -> Mapping[str, float]:
        """Scalars of the group that `allocate` needs."""

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """The method's own published allocation: a possibly fractional rank per group."""


@runtime_checkable
class WidthMethod(Method, Protocol):
    """A compressor that removes MLP channels, heads or experts."""

    def order(
        self, group: Group, weights: Mapping[str, Tensor], stats: Mapping[str, Stats]
    ) -> Ordered:
        """Order one group's units, the most important first.

        Args:
            group: of kind 'width', 'kv_heads' or 'experts'.
            weights: whole weights (M, N) by module name.
            stats: statistics by module name.

        Returns:
            tensors 'order' (full,) int64 and 'importance' (full,) in that order; where removed
            units leave a constant behind, 'mean', the mean input a feature of the 'in' matrix.

        Raises:
            SnapfitError: weights or statistics are not finite.

        """

    def summarise(
        self, group: Group, weights: Mapping[str, Tensor], stats: Mapping[str, Stats]
    ) -> Mapping[str, float]:
        """Scalars of the group that `allocate` needs."""

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """The method's own published allocation: a possibly fractional size per group."""


@runtime_checkable
class DepthMethod(Method, Protocol):
    """A compressor that removes or merges layers."""

    def schedule(self, view: DepthView) -> Schedule:
        """What every number of kept layers looks like."""
