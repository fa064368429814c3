"""Write a factored checkpoint from its source, never holding more than one tensor of it.

Shape suffixes: M output features, N input features.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from snapfit.checkpoint.format import describe_format, guard_keys
from snapfit.checkpoint.writer import ShardWriter, Written
from snapfit.core.errors import SnapfitError
from snapfit.core.files import read_json, write_json
from snapfit.core.layout import Layouts, ModuleLayout
from snapfit.nn.experts import UnfusedExperts
from snapfit.nn.reader import WeightReader
from snapfit.nn.surgery import FactoredLinear

MAX_SHARD_SIZE = 5_000_000_000
"""Bytes of tensors in a weight file, as transformers' own default in spirit."""

CARRIED = (
    "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
    "merges.txt", "chat_template.jinja", "chat_template.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
)  # fmt: skip
"""Files that go along; code and pickles never do."""


class Source(Protocol):
    """The part of `models.ModelSource` that saving needs."""

    @property
    def path(self) -> Path:
        """Folder of the source checkpoint."""

    @property
    def dtype(self) -> torch.dtype:
        """What most of its weights are stored in; the factors are stored in it."""


def save_factored(
    folder: Path,
    *,
    source: Source,
    model: PreTrainedModel,
    reader: WeightReader,
    layouts: Layouts,
    factors: Iterable[tuple[str, Tensor]],
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Written:
    """Write weights, configuration, tokenizer and generation settings into `folder`.

    Args:
        folder: exists; the caller makes it appear whole (`core.files.atomic_directory`).
        source: where configuration and tokenizer come from.
        model: the source's empty model, experts unfused, nothing factored; not changed.
        reader: the source's weights, by the names of `model`.
        layouts: the modules to factor; all others are copied bit by bit.
        factors: (name, tensor) as in `FactoredLinear.state_dict`, in any order, at least
            '<module>.a.weight' and every factored block's '<module>.b.weight' or
            '<module>.b.<i>.weight'. What does not come (biases, dense blocks) is cut from the
            source.
        max_shard_size: bytes a weight file.

    Raises:
        SnapfitError: a tensor is missing, has the wrong shape, or is not finite in the
            checkpoint's dtype; the model's own code would have to be carried.

    """
    check_saveable(model)
    layouts = {name: layout for name, layout in layouts.items() if layout.ranks}
    modules = {name: _factored(model, name, layout) for name, layout in layouts.items()}
    plain = _plain_names(model, modules)
    expected = {f"{n}.{leaf}": t for n, m in modules.items() for leaf, t in m.state_dict().items()}
    guards = guard_keys(model, source.dtype)
    with ShardWriter(folder, [*expected, *plain, *guards], max_shard_size) as writer:
        for name, tensor in chain(factors, _rest(modules, reader, expected)):
            if name not in expected:
                raise SnapfitError(f"{name} is a tensor that the plan has no place for")
            writer.add(name, _checked(name, tensor.to(source.dtype), expected.pop(name)))
        if expected:
            raise SnapfitError(f"no factor came for {next(iter(expected))}; delete the work folder")
        for name in plain:
            writer.add(name, reader.get(name))
        for name, tensor in guards.items():
            writer.add(name, tensor)
        written = writer.finish()
    write_json(folder / "config.json", _config(source, model, layouts))
    carry_files(source.path, folder)
    return written


def check_saveable(model: nn.Module) -> None:
    """Fail early, before hours of work.

    Raises:
        SnapfitError: the model is made by code that a checkpoint would have to carry.

    """
    if not type(model).__module__.startswith("transformers."):
        raise SnapfitError(
            f"{type(model).__name__} is defined by code beside its weights, which snapfit does "
            "not copy; use a version of the model that transformers has built in"
        )


def carry_files(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat templates, generation settings and licence, by allow-list."""
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    for template in sorted((source / "additional_chat_templates").glob("*.jinja")):
        target = folder / "additional_chat_templates" / template.name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(template, target)


def _factored(model: nn.Module, name: str, layout: ModuleLayout) -> FactoredLinear:
    old = model.get_submodule(name)
    return FactoredLinear(layout, bias=getattr(old, "bias", None) is not None, device="meta")


def _plain_names(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> list[str]:
    """Tensors to copy: all but those of factored modules; of tied ones the first name only."""
    skipped = set(model._keys_to_ignore_on_save or ())
    names: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in skipped and name.rpartition(".")[0] not in modules:
            names.setdefault(id(tensor), name)
    return list(names.values())


def _rest(
    modules: Mapping[str, FactoredLinear], reader: WeightReader, expected: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """What the method did not supply: empty weights, biases, dense blocks of rows."""
    for name, module in modules.items():
        yield f"{name}.weight", torch.empty(0)
        start = 0
        for index, block in enumerate(module.layout.blocks):
            rows = slice(start, start + block.rows)
            start += block.rows
            part = f"{name}.b.{index}" if isinstance(module.b, nn.ModuleList) else f"{name}.b"
            if f"{part}.bias" in expected:
                yield f"{part}.bias", reader.get(f"{name}.bias")[rows]
            if block.rank is None and f"{part}.weight" in expected:
                yield f"{part}.weight", reader.get(f"{name}.weight")[rows]


def _checked(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.shape != like.shape:
        raise SnapfitError(
            f"{name} is {list(tensor.shape)}, the plan says {list(like.shape)}; "
            "delete the work folder"
        )
    if not torch.isfinite(tensor).all():
        raise SnapfitError(f"{name} holds NaN or infinity in {tensor.dtype}")
    return tensor


def _config(source: Source, model: PreTrainedModel, layouts: Layouts) -> dict[str, Any]:
    """The source's own config.json, with the description of the format added."""
    config: dict[str, Any] = read_json(source.path / "config.json")
    config.pop("torch_dtype", None)  # the old name of 'dtype'
    config.pop("auto_map", None)  # the code it names is not carried
    unfused = any(isinstance(module, UnfusedExperts) for module in model.modules())
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(source.dtype).removeprefix("torch.")
    config["quantization_config"] = describe_format(layouts, unfused=unfused)
    return config
