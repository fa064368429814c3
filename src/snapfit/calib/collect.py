"""Statistics of every linear layer of every decoder layer, streamed, into a folder.

When all that is needed depends on activations, one forward sweep does it. As soon as one statistic
needs gradients, all are collected in the backward sweep, which recomputes every activation anyway.
Either way a layer's statistics are in memory only while that layer is. Gradients of sampled labels
and of the text's own need a backward sweep each: what the first one finds waits in a sub-folder
and is merged, layer by layer, into what the second one finds.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from snapfit.calib.collector import Collector
from snapfit.calib.statistic import Statistic, labels_of, statistic
from snapfit.calib.store import Statistics, layer_path, read_layer, write_layer
from snapfit.core.errors import SnapfitError
from snapfit.core.files import read_json, write_json
from snapfit.nn.sweep import Progress, backward_sweep, forward_sweep, no_progress

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from snapfit.calib.tokens import Tokens
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
        "count": tokens.used,
        "layers": len(stream),
        "modules": None if modules is None else sorted(modules),
    }
    _claim(folder, meta)
    result = Statistics(
        folder=folder, layers=len(stream), tokens=tokens.used, needs=frozenset(classes)
    )
    early = folder / "text"
    if not _complete(folder, len(stream)):
        first, second = _sweeps(classes)
        for part, target in ((first, early), (second, folder)):
            if part and not _complete(target, len(stream)):
                merged = early if first and target == folder else None
                visitor = _Writer(target, Collector(part, modules, tokens.used), merged)
                _sweep(stream, tokens, part, visitor, target / "state", seed, progress)
    shutil.rmtree(folder / "state", ignore_errors=True)
    shutil.rmtree(early, ignore_errors=True)
    return result


def _complete(folder: Path, depth: int) -> bool:
    """Whether every layer is in `folder`."""
    return all(layer_path(folder, index).exists() for index in range(depth))


_Classes = dict[str, type[Statistic]]


def _sweeps(classes: _Classes) -> tuple[_Classes, _Classes]:
    """What a sweep of its own collects, with the text's labels, or nothing; and all else."""
    text = {name: kind for name, kind in classes.items() if labels_of(kind) == "text"}
    rest = {name: kind for name, kind in classes.items() if name not in text}
    if any(kind.gradients for kind in rest.values()):
        return text, rest
    return {}, classes  # one sweep does it


def _sweep(
    stream: LayerStream,
    tokens: Tokens,
    classes: _Classes,
    visitor: _Writer,
    state: Path,
    seed: int,
    progress: Progress,
) -> None:
    single = any(kind.single for kind in classes.values())
    wanted = {labels_of(kind) for kind in classes.values() if kind.gradients}
    if not wanted:
        forward_sweep(
            stream,
            tokens.ids_BT,
            visitor,
            folder=state,
            mask_BT=tokens.mask_BT,
            single=single,
            progress=progress,
        )
        return
    (labels,) = wanted
    backward_sweep(
        stream,
        tokens.ids_BT,
        visitor,
        folder=state,
        seed=seed,
        labels=labels,
        mask_BT=tokens.mask_BT,
        single=single,
        progress=progress,
    )


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


class _Writer:
    """A visitor that writes each layer's statistics as soon as they are complete.

    What an earlier sweep left in `merged` is added to the layer's. It stays there: a sweep that is
    killed before its own state is on disk does the layer again.
    """

    def __init__(self, folder: Path, collector: Collector, merged: Path | None) -> None:
        self._folder = folder
        self._collector = collector
        self._merged = merged
        self.layer_started = collector.layer_started
        self.batch = collector.batch

    def layer_done(self, index: int) -> None:
        found, header = self._collector.results(index)
        if self._merged is not None:
            earlier = read_layer(self._merged, index)
            found = {name: {**earlier[name], **tensors} for name, tensors in found.items()}
        write_layer(self._folder, index, found, header)
