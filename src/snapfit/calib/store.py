"""Statistics on disk: one file a layer, read one layer at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from snapfit.core.errors import CorruptFile
from snapfit.core.files import read_kept
from snapfit.nn.tensorfile import open_tensors, save_tensors

STABLE_TOKENS_AN_INPUT = 4
"""Tokens a dimension below which second moments are called unstable.

For N uncorrelated dimensions and S tokens the smallest eigenvalue of the estimate is about
(1 - sqrt(N / S))² of the truth (Marchenko and Pastur): at S = 4 N a direction can look four times
less important than it is, and at S < N some directions look free to delete.
"""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Complete statistics in a folder.

    Attributes:
        folder: holds `meta.json` and `layer_000.safetensors`, ...
        layers: number of decoder layers.
        tokens: calibration tokens.
        needs: names of the statistics that were collected.

    """

    folder: Path
    layers: int
    tokens: int
    needs: frozenset[str]

    def layer(self, index: int) -> dict[str, dict[str, Tensor]]:
        """Statistics of decoder layer `index`: module name -> name -> tensor, on the CPU.

        Besides the statistics there is 'tokens' (int64 scalar): the tokens that reached the
        module. Modules that read one input share one tensor of its moments.

        Raises:
            CorruptFile: the file is damaged.

        """
        return read_layer(self.folder, index)

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the report should know about the size of the calibration set."""
        widest, widest_name, starved, dead = 0, "", 0, 0
        for index in range(self.layers):
            path = layer_path(self.folder, index)
            with open_tensors(path) as stored:
                header = _header(path, stored.metadata())
                for module, inputs in header.inputs.items():
                    reached = int(stored.get_tensor(f"{module}/tokens"))
                    if inputs > widest:
                        widest, widest_name = inputs, module
                    dead += reached == 0
                    starved += 0 < reached < min(inputs, self.tokens)
        found = []
        if self.tokens < STABLE_TOKENS_AN_INPUT * widest:
            found.append(
                f"{self.tokens} calibration tokens are few for {widest} inputs ({widest_name}); "
                f"at least {STABLE_TOKENS_AN_INPUT * widest} give stable estimates"
            )
        if dead:
            found.append(f"{dead} linear layers saw no calibration token (experts never chosen)")
        if starved:
            found.append(f"{starved} linear layers saw fewer tokens than they have inputs")
        return tuple(found)


def read_layer(folder: Path, index: int) -> dict[str, dict[str, Tensor]]:
    """What `Statistics.layer` says, of a folder that need not be complete.

    Raises:
        CorruptFile: the file is damaged.

    """
    found: dict[str, dict[str, Tensor]] = {}
    path = layer_path(folder, index)
    with open_tensors(path) as stored:
        for key in stored.keys():  # noqa: SIM118 - not a mapping
            module, _, name = key.rpartition("/")
            found.setdefault(module, {})[name] = stored.get_tensor(key)
        header = _header(path, stored.metadata())
    return with_aliases(found, header)


def find_statistics(
    root: Path, *, needs: Collection[str], modules: Collection[str]
) -> Statistics | None:
    """Complete statistics in a sub-folder of `root` that hold `needs` for `modules`, or more."""
    for path in sorted(root.glob("*/meta.json")):
        found, held = read_kept(path, partial(_described, path.parent))
        enough = found.needs >= set(needs) and (held is None or set(held) >= set(modules))
        if enough and all(layer_path(found.folder, i).exists() for i in range(found.layers)):
            return found
    return None


def _described(folder: Path, meta: Mapping[str, Any]) -> tuple[Statistics, list[str] | None]:
    found = Statistics(
        folder=folder,
        layers=int(meta["layers"]),
        tokens=int(meta["count"]),
        needs=frozenset(meta["needs"]),
    )
    return found, None if meta["modules"] is None else list(meta["modules"])


@dataclass(frozen=True, kw_only=True)
class LayerHeader:
    """Metadata of one layer's file.

    Attributes:
        aliases: module -> the module whose input it shares and under which the input's
            statistics are stored.
        inputs: module -> number of inputs.
        shared: names of the tensors that belong to an input.

    """

    aliases: dict[str, str]
    inputs: dict[str, int]
    shared: tuple[str, ...]


def with_aliases(
    found: dict[str, dict[str, Tensor]], header: LayerHeader
) -> dict[str, dict[str, Tensor]]:
    """Give modules that share an input the statistics of that input; no tensor is copied."""
    for module, leader in header.aliases.items():
        shared = {name: found[leader][name] for name in header.shared if name in found[leader]}
        found[module] = {**shared, **found.get(module, {})}
    return found


def layer_path(folder: Path, index: int) -> Path:
    """File of decoder layer `index`."""
    return folder / f"layer_{index:03d}.safetensors"


def write_layer(
    folder: Path, index: int, found: dict[str, dict[str, Tensor]], header: LayerHeader
) -> None:
    """Write one layer's statistics, atomically.

    Raises:
        SnapfitError: the disk is full or the folder cannot be written.

    """
    tensors = {
        f"{module}/{name}": tensor
        for module, group in found.items()
        for name, tensor in group.items()
    }
    metadata = {
        "aliases": json.dumps(header.aliases),
        "inputs": json.dumps(header.inputs),
        "shared": json.dumps(header.shared),
    }
    save_tensors(layer_path(folder, index), tensors, metadata)


def _header(path: Path, metadata: dict[str, str] | None) -> LayerHeader:
    try:
        fields = metadata or {}
        return LayerHeader(
            aliases=json.loads(fields["aliases"]),
            inputs=json.loads(fields["inputs"]),
            shared=tuple(json.loads(fields["shared"])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptFile(f"{path} is no statistics file ({error!r}); delete it") from error
