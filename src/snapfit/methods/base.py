"""What a method is. To add one, add a file beside this one; its name is the method's name.

The file defines one class named `Compressor` that satisfies `Method`. Its dataclass fields are
the method's settings (`--set name=value`), its docstring is the method's page in the docs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from snapfit.core.curve import Curve
from snapfit.core.space import Group, Space
from snapfit.nn.ordered import Ordered

Stats = Mapping[str, Tensor]
"""Statistics of one group, by the names in `Method.needs`."""

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

    """

    space: Space
    curves: Mapping[str, Curve]
    summaries: Mapping[str, Mapping[str, float]]
    budget: int
    perplexity: Callable[[str, int], float]


@runtime_checkable
class Method(Protocol):
    """One compressor.

    Attributes:
        needs: statistics that `order` reads; file names in `calib/statistics`.
        unit: the unit of the curves; only 'nats' may be added across groups.

    """

    needs: frozenset[str]
    unit: str

    def restrict(self, space: Space, segments: Segments) -> Space:
        """The part of the space that the method touches.

        Raises:
            SnapfitError: the architecture has nothing for this method.

        """

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:
        """Order one group's basis, up to its break-even rank.

        Raises:
            SnapfitError: weights or statistics are not finite.

        """

    def summarise(self, group: Group, weight_MN: Tensor, stats: Stats) -> Mapping[str, float]:
        """Scalars of the group that `allocate` needs."""

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """The method's own published allocation: a possibly fractional rank per group."""
