"""`random`: layers in random order, by the seed: what every other method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, PartBase, part_of, removals


@dataclass(frozen=True, kw_only=True)
class Compressor(PartBase):
    """A uniform number for every layer, from --seed alone; the lowest goes first. Needs no data.

    The sanity check of a comparison. The curve counts layers.

    Settings: part: layer, attention or mlp.
    """

    unit = "layers removed"

    def schedule(self, view: DepthView) -> Schedule:
        """Remove layers in an order that the seed decides."""
        full = len(view.stream)
        generator = torch.Generator().manual_seed(view.seed)
        scores = torch.rand(full, generator=generator, dtype=torch.float64)
        return removals(
            view,
            [int(index) for index in scores.argsort()],
            losses=[float(count) for count in range(full)],
            part=part_of(self),
            unit=self.unit,
            meaning=f"uniform numbers of seed {view.seed}",
            scores=[float(score) for score in scores],
        )
