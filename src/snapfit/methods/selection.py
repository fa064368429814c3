"""`selection`: the layers that you name go, in your order (--set layers=12,13)."""

from __future__ import annotations

from dataclasses import dataclass

from snapfit.core.errors import UsageError
from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, PartBase, part_of, removals


@dataclass(frozen=True, kw_only=True)
class Compressor(PartBase):
    """Removes the listed layers, the first of the list first; the others never go.

    For layers that another tool or a paper chose. Needs no data. The curve counts layers.

    Settings: layers: numbers from 0, separated by commas; part: layer, attention or mlp.
    """

    unit = "layers removed"
    layers: str = ""

    def schedule(self, view: DepthView) -> Schedule:
        """Remove the listed layers.

        Raises:
            UsageError: the list is empty, repeats a layer or names one that is not there.

        """
        full = len(view.stream)
        order = chosen(self.layers, full)
        return removals(
            view,
            order,
            losses=[float(count) for count in range(len(order) + 1)],
            part=part_of(self),
            unit=self.unit,
            meaning="no score: listed by the user",
        )


def chosen(text: str, full: int) -> list[int]:
    """The layers listed in `text`.

    Raises:
        UsageError: no list of different layers from 0 to `full` - 1, or all of them.

    """
    try:
        layers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"selection needs the layers to remove, e.g. --set layers=12,13; got {text!r}"
        ) from error
    if outside := [layer for layer in layers if not 0 <= layer < full]:
        raise UsageError(f"selection names layer {outside[0]}; the model has 0 to {full - 1}")
    if len(set(layers)) < len(layers):
        raise UsageError(f"selection names a layer twice: {text}")
    if len(layers) == full:
        raise UsageError(f"selection names all {full} layers; one has to stay")
    return layers
