"""From calls of linear layers to statistics of one decoder layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from snapfit.calib.statistic import Sample, Statistic
from snapfit.calib.store import LayerHeader
from snapfit.core.errors import SnapfitError

if TYPE_CHECKING:
    from collections.abc import Collection

    from torch import Tensor

    from snapfit.nn.observe import Seen


class Collector:
    """Feeds every call of every linear layer to the accumulators of one decoder layer."""

    def __init__(
        self,
        classes: dict[str, type[Statistic]],
        modules: Collection[str] | None,
        total: int,
    ) -> None:
        self._classes = classes
        self._modules = None if modules is None else frozenset(modules)
        self._total = total
        self._shapes: dict[str, tuple[int, int]] = {}
        self._own: dict[str, dict[str, Statistic]] = {}
        self._leaders: dict[str, str] = {}
        self._tokens: dict[str, int] = {}

    def layer_started(self, index: int, shapes: dict[str, tuple[int, int]]) -> None:  # noqa: ARG002
        """Forget the last layer."""
        self._shapes = {
            name: shape
            for name, shape in shapes.items()
            if self._modules is None or name in self._modules
        }
        self._own, self._leaders = {}, {}
        self._tokens = dict.fromkeys(self._shapes, 0)

    def batch(self, index: int, seen: list[Seen]) -> None:  # noqa: ARG002
        """Feed every call to its module's accumulators.

        Raises:
            SnapfitError: a module shares an input with another for some tokens only.

        """
        first_reader: dict[int, str] = {}
        newcomers: set[str] = set()
        for call in seen:
            name = call.module
            if name not in self._shapes:
                continue
            reader = first_reader.setdefault(call.source, name)
            if name not in self._leaders:
                # Shared only if both were first seen in this batch: else histories differ.
                self._leaders[name] = reader if reader in newcomers else name
                newcomers.add(name)
                self._own[name] = self._accumulators(name, leads=self._leaders[name] == name)
            leader = self._leaders[name]
            if leader not in (name, reader):
                raise SnapfitError(
                    f"{name} reads the input of {leader} for some tokens and another one for "
                    "others; statistics of such a layer cannot be collected"
                )
            x_SN, y_SM = call.x.flatten(0, -2), call.y.flatten(0, -2)
            g_SM = None if call.g is None else call.g.flatten(0, -2)
            assert call.weight is not None
            sample = Sample(
                x_SN=x_SN,
                y_SM=y_SM,
                g_SM=g_SM,
                weight_MN=call.weight,
                routing_S=call.routing,
                head=call.head,
            )
            for accumulator in self._own[name].values():
                accumulator.update(sample)
            self._tokens[name] += len(x_SN)

    def layer_done(self, index: int) -> None:
        """Nothing: results are taken, not pushed."""

    def results(self, index: int) -> tuple[dict[str, dict[str, Tensor]], LayerHeader]:
        """Statistics by module, shared ones under the first module only; forgets them.

        Raises:
            SnapfitError: a statistic is not finite.

        """
        found: dict[str, dict[str, Tensor]] = {}
        shared: set[str] = set()
        for name in self._shapes:
            if name not in self._own:  # an expert that no token was sent to
                self._leaders[name] = name
                self._own[name] = self._accumulators(name, leads=True)
            leader = self._leaders[name]
            if self._tokens[name] != self._tokens[leader]:
                raise SnapfitError(
                    f"{name} saw {self._tokens[name]} tokens, {leader}, whose input it shares, "
                    f"saw {self._tokens[leader]}; statistics of such a layer cannot be collected"
                )
            found[name] = {"tokens": torch.tensor(self._tokens[name])}
            for accumulator in self._own.pop(name).values():
                tensors = accumulator.result(total=self._total)
                _require_finite(tensors, index, name)
                shared |= set(tensors) if accumulator.shared else set()
                found[name] |= tensors
        header = LayerHeader(
            aliases={name: leader for name, leader in self._leaders.items() if name != leader},
            inputs={name: inputs for name, (_, inputs) in self._shapes.items()},
            shared=tuple(sorted(shared)),
        )
        return found, header

    def _accumulators(self, name: str, *, leads: bool) -> dict[str, Statistic]:
        outputs, inputs = self._shapes[name]
        return {
            key: kind(outputs=outputs, inputs=inputs)
            for key, kind in self._classes.items()
            if leads or not kind.shared
        }


def _require_finite(tensors: dict[str, Tensor], index: int, module: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SnapfitError(
                f"{name} of {module} (layer {index}) is not finite: its input, output or "
                "gradient holds NaN or infinity, or overflows in float32"
            )
