"""`magnitude`: the layers with the smallest weights go first (baseline of arXiv 2402.02834)."""

from __future__ import annotations

from dataclasses import dataclass

from snapfit.core.errors import UsageError
from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, GuardedBase, one_shot, part_of


@dataclass(frozen=True, kw_only=True)
class Compressor(GuardedBase):
    """Sum of the absolute weights of a layer, its norms included; the smallest goes first.

    Needs no data; one layer in memory. A weak baseline by construction: it ignores that deeper
    layers work on a larger residual stream, and may take the first layer first, which ruins the
    model; the paper's "Mag+" is keep_first=4 and keep_last=2.

    Settings: part: layer, attention or mlp; power: sum of abs(w) ** power, 1 as published, or 2;
    keep_first and keep_last: layers that never go.
    """

    unit = "weight norm"
    power: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power not in {1, 2}:
            raise UsageError(f"power must be 1 or 2; got {self.power}")

    def schedule(self, view: DepthView) -> Schedule:
        """Remove the layers of the smallest weights first."""
        part, stream = part_of(self), view.stream
        view.names(part)
        scores = []
        for index in range(len(stream)):
            with stream.layer(index) as layer:
                scores.append(
                    sum(
                        float(weight.double().abs().pow(self.power).sum())
                        for name, weight in view.inner(index, layer, part).named_parameters()
                        if name.endswith("weight")
                    )
                )
            view.progress("layers", index + 1, len(stream))
        meaning = f"sum of abs(w) ** {self.power}"
        return one_shot(
            view,
            scores,
            part=part,
            unit=self.unit,
            meaning=meaning,
            keep_first=self.keep_first,
            keep_last=self.keep_last,
        )
