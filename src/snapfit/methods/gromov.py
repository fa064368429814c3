"""`gromov`: the block of layers whose input and output are closest goes (arXiv 2403.17887)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from snapfit.core.combination import untouched
from snapfit.core.schedule import Depth, Schedule
from snapfit.methods._depth import DepthBase, DepthView
from snapfit.methods._passes import observe

if TYPE_CHECKING:
    from torch import nn

_MEANING = "angular distance of the layer's input and output at the last token"


@dataclass(frozen=True, kw_only=True)
class Compressor(DepthBase):
    """To remove n layers: the n consecutive ones with the least angular distance across them.

    The distance between the input of layer l and that of layer l + n is arccos(cosine) / pi at the
    last token of each calibration window, averaged. Blocks of different n need not overlap, so
    every n has a block of its own. Blocks that end with the last layer are measured too, as in the
    paper, whose figures show them to be the farthest; the "input" after the last layer is its
    output before the final norm. One pass over the calibration tokens, one layer in memory; more
    and shorter windows (--context) give a better average.
    """

    unit = "angular distance"
    reads_tokens: ClassVar[bool] = True

    def schedule(self, view: DepthView) -> Schedule:
        """The closest block for every number of layers."""

        def see(
            _index: int, _layer: nn.Module, input_BTD: Tensor, output_BTD: Tensor
        ) -> Mapping[str, Tensor]:
            return {"input": input_BTD[:, -1], "output": output_BTD[:, -1]}

        seen = observe(view, see)
        states_LBD = torch.stack([*(entry["input"] for entry in seen), seen[-1]["output"]])
        distances = angular_distances(states_LBD)
        full = len(seen)
        sizes = {full: Depth(layers=untouched(range(full)))}
        losses = {full: 0.0}
        for count in range(1, full):
            start = int(distances[count].argmin())
            kept = [*range(start), *range(start + count, full)]
            sizes[full - count] = Depth(layers=untouched(kept))
            losses[full - count] = float(distances[count][start])
        return Schedule(
            full=full,
            sizes=sizes,
            losses=losses,
            unit=self.unit,
            scores=tuple(distances[1].tolist()),
            meaning=_MEANING,
        )


def angular_distances(states_LBD: Tensor) -> dict[int, Tensor]:
    """Mean angular distance between states n apart, for every n: (L - n,) by first state.

    Args:
        states_LBD: last-token states at the input of every layer, and after the last one.

    """
    unit_LBD = torch.nn.functional.normalize(states_LBD.double(), dim=-1)
    depth = len(unit_LBD)
    return {
        n: ((unit_LBD[:-n] * unit_LBD[n:]).sum(-1).clamp(-1, 1).arccos() / math.pi).mean(-1)
        for n in range(1, depth)
    }
