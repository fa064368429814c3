"""Weights by module name, read lazily from whichever shard and under whichever name they lie.

transformers 5 renames keys and fuses experts on the way from disk to module. The renaming rules
are its own (`get_model_conversion_mapping`), so nothing is written twice; the fusing is undone,
since the model has a linear layer an expert (`nn.experts`). Three layouts of experts are read:

    mlp.experts.<i>.gate_proj.weight     as Qwen3-MoE is stored
    mlp.experts.<i>.w1.weight            as Mixtral is stored (w1 gate, w3 up, w2 down)
    mlp.experts.gate_up_proj             as transformers holds them in memory (E, 2I, H)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.models.source import DTYPES, ModelSource, empty_model

EXPERT_PARTS = {
    "gate_proj": "gate", "w1": "gate", "gate": "gate",
    "up_proj": "up", "w3": "up", "up": "up",
    "down_proj": "down", "w2": "down", "down": "down",
}  # fmt: skip
_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(\w+)\.weight$")
_FUSED = re.compile(r"^(.*\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies: a key of a file, or rows start:stop of one expert of it."""

    file: Path
    key: str
    expert: int | None = None
    start: int = 0
    stop: int = 0


class CheckpointReader:
    """The `nn.reader.WeightReader` of a transformers checkpoint."""

    def __init__(
        self, places: Mapping[str, Place], aliases: Mapping[str, str], dtype: torch.dtype
    ) -> None:
        self._places = dict(places)
        self._aliases = dict(aliases)
        self._dtype = dtype

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter and persistent buffer of the model, tied names included."""
        return (*self._places, *self._aliases)

    def get(self, name: str) -> Tensor:
        """The tensor of `name`, on the CPU, in the checkpoint's dtype.

        Raises:
            SnapfitError: the checkpoint has no such tensor.

        """
        with _Files() as files:
            return files.read(self._place(name))

    def load_into(
        self,
        module: nn.Module,
        prefix: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Replace `module`'s parameters and persistent buffers by those on disk, in place.

        Tensors that are tied inside `module` stay tied. Floating-point tensors become `dtype`.

        Raises:
            SnapfitError: a tensor is missing, has another shape, or holds NaN or infinity.

        """
        loaded: dict[int, Tensor] = {}
        with _Files() as files:
            for owner, leaf, path, old in _persistent(module):
                if id(old) not in loaded:
                    name = f"{prefix}.{path}" if prefix else path
                    tensor = _checked(name, files.read(self._place(name)), old)
                    target = dtype if tensor.is_floating_point() else None
                    tensor = tensor.to(device=device, dtype=target or tensor.dtype, copy=True)
                    loaded[id(old)] = _like(old, tensor)
                _assign(owner, leaf, loaded[id(old)])

    def release(self, module: nn.Module) -> None:
        """Put `module`'s parameters and persistent buffers back on the meta device, in place."""
        emptied: dict[int, Tensor] = {}
        for owner, leaf, _, old in _persistent(module):
            if id(old) not in emptied:
                target = self._dtype if old.is_floating_point() else old.dtype
                emptied[id(old)] = _like(old, torch.empty_like(old, device="meta", dtype=target))
            _assign(owner, leaf, emptied[id(old)])

    def _place(self, name: str) -> Place:
        place = self._places.get(self._aliases.get(name, name))
        if place is None:
            raise SnapfitError(f"the checkpoint has no tensor for {name!r}")
        return place


def open_weights(source: ModelSource, model: PreTrainedModel | None = None) -> CheckpointReader:
    """A reader of `source`'s weights by the names of `empty_model(source)`.

    Args:
        source: the opened checkpoint.
        model: the empty model, when the caller has it already.

    Raises:
        CorruptFile: the checkpoint lacks tensors that the model needs.
        SnapfitError: one is stored in a way that is not read.

    """
    model = empty_model(source) if model is None else model
    state = model.state_dict(keep_vars=True)
    found = dict(_find(source, model, state))
    places = {name: found[name] for name in state if name in found}
    by_id = {id(state[name]): name for name in places}
    aliases = {
        name: by_id[id(tensor)]
        for name, tensor in state.items()
        if name not in places and id(tensor) in by_id
    }
    missing = [name for name in state if name not in places and name not in aliases]
    if missing:
        raise CorruptFile(
            f"{source.path} lacks {len(missing)} of {len(state)} tensors, {missing[0]} first; "
            "the checkpoint is incomplete or of a layout that snapfit does not know"
        )
    for name, place in places.items():
        stored = source.shards.entries[place.key][1].dtype
        if state[name].is_floating_point() and stored not in DTYPES:
            raise SnapfitError(
                f"{source.path} stores {name} as {stored}; snapfit reads {', '.join(DTYPES)}"
            )
    reader = CheckpointReader(places, aliases, source.dtype)
    _require_equal_ties(source, reader, {name: id(state[name]) for name in places})
    return reader


def _require_equal_ties(
    source: ModelSource, reader: CheckpointReader, owners: Mapping[str, int]
) -> None:
    """Two names of one parameter may both be on disk, but not with different values."""
    first: dict[int, str] = {}
    for name, owner in owners.items():
        other = first.setdefault(owner, name)
        if other != name and not torch.equal(reader.get(name), reader.get(other)):
            raise CorruptFile(
                f"{source.path}: config.json ties {name} to {other}, but the checkpoint holds "
                "different values for them; set tie_word_embeddings to false in config.json"
            )


def _find(
    source: ModelSource, model: PreTrainedModel, state: dict[str, Tensor]
) -> Iterator[tuple[str, Place]]:
    """(model name, place) of every key on disk that the model has a tensor for."""
    rules = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightRenaming)]
    prefix = model.base_model_prefix
    for key, (file, entry) in source.shards.entries.items():
        renamed, _ = rename_source_key(key, rules, [], prefix, state)
        if renamed in state:
            yield renamed, Place(file=file, key=key)
            continue
        for name, expert, start, stop in _unfused(renamed, entry.shape):
            full = name if name in state else f"{prefix}.{name}"
            if full in state:
                yield full, Place(file=file, key=key, expert=expert, start=start, stop=stop)


def _unfused(key: str, shape: tuple[int, ...]) -> Iterator[tuple[str, int | None, int, int]]:
    """(name, expert, first row, last row + 1) of the linear layers that a key of experts holds."""
    if (single := _EXPERT.match(key)) and single[3] in EXPERT_PARTS:
        yield f"{single[1]}.{single[2]}.{EXPERT_PARTS[single[3]]}.weight", None, 0, 0
    elif (fused := _FUSED.match(key)) and len(shape) == 3:
        for index in range(shape[0]):
            if fused[2] == "down_proj":
                yield f"{fused[1]}.{index}.down.weight", index, 0, shape[1]
            else:
                half = shape[1] // 2
                yield f"{fused[1]}.{index}.gate.weight", index, 0, half
                yield f"{fused[1]}.{index}.up.weight", index, half, shape[1]


class _Files(contextlib.ExitStack):
    """Opens each file at most once while in use; nothing stays mapped afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self._handles: dict[Path, Any] = {}

    def read(self, place: Place) -> Tensor:
        try:
            if place.file not in self._handles:
                self._handles[place.file] = self.enter_context(safe_open(place.file, "pt"))
            handle = self._handles[place.file]
            if place.expert is None:
                tensor: Tensor = handle.get_tensor(place.key)
            else:
                tensor = handle.get_slice(place.key)[place.expert, place.start : place.stop]
            return tensor
        except (OSError, SafetensorError) as error:
            raise CorruptFile(f"cannot read {place.key} from {place.file}: {error}") from error


def _persistent(module: nn.Module) -> Iterable[tuple[nn.Module, str, str, Tensor]]:
    """(owner, leaf name, qualified name, tensor) of parameters and persistent buffers.

    Listed before the first is replaced; tied tensors appear once a name.
    """
    found = []
    for path, owner in module.named_modules():
        buffers = {
            leaf: buffer
            for leaf, buffer in owner._buffers.items()
            if leaf not in owner._non_persistent_buffers_set
        }
        for leaf, tensor in {**owner._parameters, **buffers}.items():
            if tensor is not None:
                found.append((owner, leaf, f"{path}.{leaf}" if path else leaf, tensor))
    return found


def _assign(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    table = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
    table[leaf] = tensor  # type: ignore[assignment]


def _like(old: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` as a parameter or buffer, whichever `old` is."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=old.requires_grad)
    return tensor


def _checked(name: str, tensor: Tensor, old: Tensor) -> Tensor:
    if tensor.shape != old.shape:
        raise CorruptFile(
            f"{name} is {tuple(tensor.shape)} on disk, the configuration makes it "
            f"{tuple(old.shape)}; config.json belongs to other weights"
        )
    # One sum is much cheaper than a mask of the tensor's size, and is finite unless something
    # in the tensor is not, or the values are so large that they need the exact check.
    if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise SnapfitError(
                f"{name} holds {bad} NaN or infinite values; the checkpoint is damaged or its "
                "training diverged, download it again"
            )
    return tensor
