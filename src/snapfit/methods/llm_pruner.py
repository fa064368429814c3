"""`llm-pruner`: coupled structures by a first-order Taylor term (arXiv 2305.11627).

A structure is a channel of an MLP (a row of gate and of up, a column of down), or a key-value head
with its query heads (their rows of q, k, v, their columns of o), or a whole expert.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snapfit.core.errors import UsageError
from snapfit.core.space import Group
from snapfit.methods._width import (
    Width,
    ranked_sizes,
    structure_sums,
    to_ordered,
    uniform_sizes,
)
from snapfit.methods.base import Allocation, Stats
from snapfit.nn.ordered import Ordered

IMPORTANCES = ("taylor", "l1", "l2", "random")
RANKINGS = ("global", "layer")

SPARED = 4
"""At most one layer in so many is left alone, lest a shallow model has none left to prune."""


@dataclass(frozen=True, kw_only=True)
class Compressor(Width):
    """Removes the structures whose weights matter least, a whole structure at a time.

    Its own allocation ranks the structures of all layers together and leaves the first three
    layers and the last alone, unless the budget cannot be met otherwise. Structures are compared
    by their sums, as in the release: a head has many more weights than a channel.

    Settings:
        parts: what may go, of mlp, heads, experts (whole ones, instead of channels of each).
        importance: 'taylor': abs(w * dL/dw) summed over the structure, with dL/dw of the
            calibration text (the release calls it 'param_first'; its default adds half of a
            diagonal second-order term); 'l1' or 'l2': sum of abs(w) or of w²; 'random'.
        ranking: 'global', or 'layer': the same share of every group that is touched, which is
            what the release does unless it is asked for global pruning.
        skip_first: layers at the start that are left alone (fewer in a model of few layers).
        skip_last: layers at the end that are left alone.
        seed: of the random importance.
    """

    importance: str = "taylor"
    ranking: str = "global"
    skip_first: int = 3
    skip_last: int = 1
    seed: int = 0

    unit = "importance"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("importance", IMPORTANCES), ("ranking", RANKINGS)):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"llm-pruner: {name} {getattr(self, name)!r} is not {', '.join(known)}"
                )
        if min(self.skip_first, self.skip_last) < 0:
            raise UsageError("llm-pruner: skip_first and skip_last must be at least 0")
        if abs(self.seed) >> 62:
            raise UsageError(f"llm-pruner: seed must have at most 62 bits, found {self.seed}")

    @property
    def needs(self) -> frozenset[str]:
        """Gradients of the weights, for 'taylor' alone."""
        return frozenset({"taylor"} if self.importance == "taylor" else ())

    def order(
        self, group: Group, weights: Mapping[str, Tensor], stats: Mapping[str, Stats]
    ) -> Ordered:
        """Structures by importance, largest first."""
        if self.importance == "random":
            generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()) + self.seed)
            importance_U = torch.rand(group.full, generator=generator, dtype=torch.float64)
        elif self.importance == "taylor":
            importance_U = structure_sums(
                group,
                lambda name: stats[name]["taylor_rows"],
                lambda name: stats[name]["taylor_columns"],
            )
        else:
            power = 1 if self.importance == "l1" else 2
            importance_U = structure_sums(
                group,
                lambda name: weights[name].double().abs().pow(power).sum(1),
                lambda name: weights[name].double().abs().pow(power).sum(0),
            )
        return to_ordered(group, importance_U, unit=self.unit)

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """What a ranking over all layers leaves, or the same share of every touched group."""
        spared = self._spared(request)
        if self.ranking == "layer":
            return uniform_sizes(request, spared)
        return ranked_sizes(request, spared)

    def _spared(self, request: Allocation) -> set[str]:
        groups = request.space.groups
        layers = 1 + max(group.layer for group in groups)
        most = layers // SPARED
        last = min(self.skip_last, most)
        first = min(self.skip_first, most - last)
        return {
            group.name for group in groups if group.layer < first or group.layer >= layers - last
        }
