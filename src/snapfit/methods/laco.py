"""`laco`: consecutive layers are merged into one, from the top down (arXiv 2402.11187)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from snapfit.core.combination import Combination, collapse, is_untouched, untouched
from snapfit.core.errors import UsageError
from snapfit.core.files import digest_json
from snapfit.core.schedule import Depth, Schedule
from snapfit.methods._depth import DepthBase, DepthView, positive
from snapfit.methods._passes import Memo, pieces
from snapfit.nn.sweep import Progress, no_progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

LEAST_COSINE = 0.0
"""Lowest threshold that is relaxed to: below it nothing of the final hidden states is left."""

Similarity = Callable[[tuple[Combination, ...], int], float]
"""(layers, position): cosine of the final hidden states after merging there."""


@dataclass(frozen=True, kw_only=True)
class Compressor(DepthBase):
    """Merges `merge` (C) layers into the first: theta_l + sum of (theta_{l+k} - theta_l).

    From the top: a merge is kept if the final hidden states of a few calibration sentences keep a
    mean cosine above `threshold` (T) with the original's, and the next is tried `interval` (I)
    layers below; otherwise the position moves down by one, to `lowest`. All parameters of a layer
    are merged, differences are to the unmerged layer l, as in the paper (the published script
    merges projections only and subtracts the running sum, which leaves just the last layer).

    The paper stops there. To reach smaller models too, the sweep then starts again from the top
    with what was merged so far; T falls in steps of `relax` to just below the best merge that is
    left, never below 0. Sizes, and the T and cosine of each, are in the schedule. Each merge
    removes C - 1 layers, so only such sizes are reachable; C = 2 reaches all, but its merge is just
    the second layer in the place of the first. The whole model is in memory.

    Settings: merge, interval, lowest, highest (layers from lowest to highest - 1 are merged; 0:
    all), threshold, relax; samples and length: calibration sentences and the tokens of each.
    """

    unit = "1 - cosine"
    reads_tokens: ClassVar[bool] = True
    merge: int = 4
    interval: int = 2
    lowest: int = 0
    highest: int = 0
    threshold: float = 0.65
    relax: float = 0.05
    samples: int = 10
    length: int = 32

    def __post_init__(self) -> None:
        positive(interval=self.interval, samples=self.samples, length=self.length)
        if self.merge < 2:
            raise UsageError(f"merge is how many layers become one, at least 2; got {self.merge}")
        if self.lowest < 0 or self.highest < 0:
            raise UsageError(f"layers are counted from 0; got {min(self.lowest, self.highest)}")
        if not -1 <= self.threshold < 1 or not 0 < self.relax < 1:
            raise UsageError(
                f"threshold is a cosine and relax a step of it; got {self.threshold}, {self.relax}"
            )

    def schedule(self, view: DepthView) -> Schedule:
        """The sizes that accepted merges reach.

        Raises:
            UsageError: the model has no such layers.

        """
        full = len(view.stream)
        highest = self.highest or full
        if highest > full or highest - self.lowest < self.merge:
            raise UsageError(
                f"laco cannot merge {self.merge} of the layers {self.lowest} to {highest - 1}; "
                f"the model has 0 to {full - 1}"
            )
        return self.search(full, _Probe(self, view), view.progress)

    def search(
        self, full: int, similarity: Similarity, progress: Progress = no_progress
    ) -> Schedule:
        """The merges of a model with `full` layers, given what each does to its output."""
        most = 1 + self._top(untouched(range(full)), full) // (self.merge - 1)
        layers = untouched(range(full))
        sizes, losses, notes = {full: Depth(layers=layers)}, {full: 0.0}, {}
        threshold = self.threshold
        while True:
            position = self._top(layers, full)
            while position >= self.lowest:
                cosine = similarity(layers, position)
                if cosine <= threshold:
                    position -= 1
                    continue
                layers = collapse(layers, position, self.merge)
                sizes[len(layers)] = Depth(layers=layers)
                losses[len(layers)] = max(0.0, 1 - cosine)
                notes[len(layers)] = f"T {threshold:.2f}, cosine {cosine:.3f}"
                position = min(position - self.interval, self._top(layers, full))
                progress("merges", len(sizes) - 1, most)
            left = range(self.lowest, self._top(layers, full) + 1)
            best = max((similarity(layers, position) for position in left), default=-1.0)
            if best <= min(LEAST_COSINE, threshold):
                break
            while threshold >= best:
                threshold = max(LEAST_COSINE, round(threshold - self.relax, 9))
        return Schedule(full=full, sizes=sizes, losses=losses, unit=self.unit, notes=notes)

    def _top(self, layers: tuple[Combination, ...], full: int) -> int:
        """The highest position at which a merge still begins."""
        return (self.highest or full) - (full - len(layers)) - self.merge


class _Probe:
    """Cosine of the final hidden states with the original's, after a merge."""

    def __init__(self, settings: Compressor, view: DepthView) -> None:
        self._merge, self._view = settings.merge, view
        self._ids_BT = pieces(view.ids_BT, samples=settings.samples, length=settings.length)
        self._memo = Memo(view.folder / "cosines.json")
        self._dense: Sequence[nn.Module] = ()
        self._layers: tuple[Combination, ...] = ()
        self._inputs: list[Tensor] = []
        self._merged: dict[Combination, nn.Module] = {}
        self._original_BTD = torch.empty(0)

    def __call__(self, layers: tuple[Combination, ...], position: int) -> float:
        key = digest_json([layers, position, self._merge])
        return self._memo(key, lambda: self._measure(layers, position))

    @torch.no_grad()
    def _measure(self, layers: tuple[Combination, ...], position: int) -> float:
        if not self._dense:
            self._dense = self._view.dense()
            self._inputs = [self._view.stream.embed(self._ids_BT)]
            self._move(untouched(range(len(self._dense))))
            self._original_BTD = self._view.stream.final(self._inputs[-1])
        self._move(layers)
        after = collapse(layers, position, self._merge)
        if not self._alike([source for source, _ in after[position]]):
            return -1.0
        hidden_BTD = self._inputs[position]
        for mix in after[position:]:
            hidden_BTD = self._run(mix, hidden_BTD)
        final_BTD = self._view.stream.final(hidden_BTD)
        return float(
            torch.cosine_similarity(
                final_BTD.flatten(1).double(), self._original_BTD.flatten(1).double()
            ).mean()
        )

    def _move(self, layers: tuple[Combination, ...]) -> None:
        """Make `self._inputs` the inputs of `layers`, and the output of the last."""
        if layers == self._layers:
            return
        same = 0
        for old, new in zip(self._layers, layers, strict=False):
            if old != new:
                break
            same += 1
        del self._inputs[same + 1 :]
        for mix in layers[same:]:
            self._inputs.append(self._run(mix, self._inputs[-1]))
        self._merged = {mix: module for mix, module in self._merged.items() if mix in layers}
        self._layers = layers

    def _run(self, mix: Combination, hidden_BTD: Tensor) -> Tensor:
        base = mix[0][0]
        if is_untouched(mix):
            layer = self._dense[base]
        elif mix in self._merged:
            layer = self._merged[mix]
        else:
            layer = self._merged[mix] = merged_layer(self._dense, mix)
        return self._view.stream.run_layer(base, layer, hidden_BTD)

    def _alike(self, sources: Sequence[int]) -> bool:
        """Whether parameters of the layers can be added: same names and shapes."""
        shapes = [
            {name: tuple(weight.shape) for name, weight in self._dense[source].named_parameters()}
            for source in sources
        ]
        return all(shape == shapes[0] for shape in shapes)


@torch.no_grad()
def merged_layer(layers: Sequence[nn.Module], mix: Combination) -> nn.Module:
    """A copy of the base layer with every parameter the combination that `mix` says."""
    merged = copy.deepcopy(layers[mix[0][0]])
    for name, parameter in merged.named_parameters():
        total = torch.zeros_like(parameter)
        for source, coefficient in mix:
            total += coefficient * layers[source].get_parameter(name)
        parameter.data = total
    return merged
