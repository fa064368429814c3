"""Statistics of every linear layer of every decoder layer, streamed, into a folder.

When all that is needed depends on activations, one forward sweep does it. As soon as one statistic
needs gradients, all are collected in the backward sweep, which recomputes every activation anyway.
Either way a layer's statistics are in memory only while that layer is.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch

from snapfit.calib.statistic import Sample, Statistic, statistic
from snapfit.calib.store import LayerHeader, Statistics, layer_path, write_layer
from snapfit.core.errors import SnapfitError
from snapfit.core.files import read_json, write_json
from snapfit.nn.sweep import Progress, backward_sweep, forward_sweep, no_progress

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from torch import Tensor

    from snapfit.calib.tokens import Tokens
    from snapfit.nn.observe import Seen
    from snapfit.nn.stream import LayerStream

SCHEMA = 1


def collect(
    stream: LayerStream,
    tokens: Tokens,
    needs: Collection[str],
    folder: Path,
    *,
    revision: str,
    seed: int = 0,
    modules: Collection[str] | None = None,
    progress: Progress = no_progress,
) -> Statistics:
    """Collect `needs` over `tokens`, or continue, or return what `folder` already holds.

    Args:
        stream: the model.
        tokens: calibration windows.
        needs: names of statistics (files in `calib/statistics`).
        folder: where they go; one folder for one combination of all other arguments.
        revision: digest of the model's weights.
        seed: of the sampled labels.
        modules: names of the linear layers to look at; all when None.
        progress: told ('forward' | 'head' | 'backward', done, total).

    Raises:
        UsageError: there is no statistic of that name.
        SnapfitError: the folder belongs to another job, a value is not finite (names layer and
            module), or the disk is full.

    """
    classes = {name: statistic(name) for name in sorted(needs)}
    meta = {
        "schema": SCHEMA,
        "revision": revision,
        "tokens": tokens.digest,
        "needs": list(classes),
        "seed": seed,
        "context": int(tokens.ids_BT.shape[1]),
        "modules": None if modules is None else sorted(modules),
    }
    _claim(folder, meta)
    depth = len(stream)
    result = Statistics(
        folder=folder, layers=depth, tokens=tokens.ids_BT.numel(), needs=frozenset(classes)
    )
    state = folder / "state"
    if not all(layer_path(folder, index).exists() for index in range(depth)):
        visitor = _Collector(folder, classes, modules, tokens.ids_BT.numel())
        single = any(kind.single for kind in classes.values())
        if any(kind.gradients for kind in classes.values()):
            backward_sweep(
                stream,
                tokens.ids_BT,
                visitor,
                folder=state,
                seed=seed,
                single=single,
                progress=progress,
            )
        else:
            forward_sweep(
                stream, tokens.ids_BT, visitor, folder=state, single=single, progress=progress
            )
    shutil.rmtree(state, ignore_errors=True)
    return result


def _claim(folder: Path, meta: dict[str, Any]) -> None:
    for left in folder.glob(".layer_*"):  # half-written by a process that was killed
        left.unlink()
    path = folder / "meta.json"
    if not path.exists():
        write_json(path, meta)
        return
    found = read_json(path)
    if found != meta:
        found = found if isinstance(found, dict) else {}
        different = [key for key in meta if found.get(key) != meta[key]]
        raise SnapfitError(
            f"{folder} holds statistics of another job ({', '.join(different)} differ); "
            "delete it or choose another work folder"
        )


class _Collector:
    """Feeds every call of every linear layer to the accumulators of one decoder layer."""

    def __init__(
        self,
        folder: Path,
        classes: dict[str, type[Statistic]],
        modules: Collection[str] | None,
        total: int,
    ) -> None:
        self._folder = folder
        self._classes = classes
        self._modules = None if modules is None else frozenset(modules)
        self._total = total
        self._shapes: dict[str, tuple[int, int]] = {}
        self._own: dict[str, dict[str, Statistic]] = {}
        self._leaders: dict[str, str] = {}
        self._tokens: dict[str, int] = {}

    def layer_started(self, index: int, shapes: dict[str, tuple[int, int]]) -> None:  # noqa: ARG002
        self._shapes = {
            name: shape
            for name, shape in shapes.items()
            if self._modules is None or name in self._modules
        }
        self._own, self._leaders = {}, {}
        self._tokens = dict.fromkeys(self._shapes, 0)

    def batch(self, index: int, seen: list[Seen]) -> None:  # noqa: ARG002
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
            sample = Sample(x_SN=x_SN, y_SM=y_SM, g_SM=g_SM)
            for accumulator in self._own[name].values():
                accumulator.update(sample)
            self._tokens[name] += len(x_SN)

    def layer_done(self, index: int) -> None:
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
        write_layer(self._folder, index, found, header)

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
