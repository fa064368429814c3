"""`reverse-order`: the last layers go first (arXiv 2411.15558)."""

from __future__ import annotations

from dataclasses import dataclass

from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, PartBase, part_of, removals


@dataclass(frozen=True, kw_only=True)
class Compressor(PartBase):
    """Importance falls with depth, 1 / (layer + 1), so the last layer goes first. Needs no data.

    The paper finds that, after fine-tuning, this beats most metrics. The curve counts layers.

    Settings: part: layer, attention or mlp.
    """

    unit = "layers removed"

    def schedule(self, view: DepthView) -> Schedule:
        """Remove the last layers first."""
        full = len(view.stream)
        return removals(
            view,
            list(reversed(range(full))),
            losses=[float(count) for count in range(full)],
            part=part_of(self),
            unit=self.unit,
            meaning="1 / (layer + 1)",
            scores=[1 / (index + 1) for index in range(full)],
        )
