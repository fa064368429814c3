"""Write a compressed checkpoint from its source, never holding more than a few tensors of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from snapfit.checkpoint.blueprint import Blueprint, TensorMaker
from snapfit.checkpoint.writer import ShardWriter, Written
from snapfit.core.errors import SnapfitError
from snapfit.core.files import write_json
from snapfit.nn.factored import FactoredLinear
from snapfit.nn.parts import AbsentPart
from snapfit.nn.reader import WeightReader

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

Named = tuple[str, Tensor]


class Source(Protocol):
    """The part of `models.ModelSource` that saving needs."""

    @property
    def path(self) -> Path:
        """Folder of the source checkpoint."""

    @property
    def dtype(self) -> torch.dtype:
        """What most of its weights are stored in; the factors are stored in it."""

    @property
    def config(self) -> PreTrainedConfig:
        """Its configuration."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a format makes of a blueprint.

    Attributes:
        model: on the meta device, in the shapes of the checkpoint: its state is what is written.
        blueprint: of `model`.
        config: the content of config.json.
        extra: tensors that are written beside the model's.
        skipped: names of `model`'s state that are not written.
        files: other files: {name: text}.
        to_disk: renames tensors from the names of `model` to those on disk.

    """

    model: PreTrainedModel
    blueprint: Blueprint
    config: Mapping[str, Any]
    extra: Mapping[str, Tensor]
    skipped: frozenset[str] = frozenset()
    files: Mapping[str, str]
    to_disk: Callable[[Iterator[Named]], Iterator[Named]]


Step = Callable[[int, int], None]
"""Told (done, total)."""


def write_checkpoint(
    folder: Path,
    *,
    source: Source,
    reader: WeightReader,
    target: Target,
    factors: Iterable[Named],
    max_shard_size: int = MAX_SHARD_SIZE,
    step: Step = lambda _done, _total: None,
) -> Written:
    """Write weights, configuration, tokenizer and generation settings into `folder`.

    Args:
        folder: exists; the caller makes it appear whole (`core.files.atomic_directory`).
        source: where configuration and tokenizer come from.
        reader: the source's weights, by the names of its model with unfused experts.
        target: what to write.
        factors: see `checkpoint.formats.save`.
        max_shard_size: bytes a weight file.
        step: told how many tensors are written, of how many.

    Raises:
        SnapfitError: a tensor is missing, has the wrong shape, or is not finite in the
            checkpoint's dtype.

    """
    expected = _expected(target)
    maker = TensorMaker(reader, target.blueprint, source.dtype)
    made = _told(_made(target, expected, maker, factors, source.dtype), step, len(expected))
    # Names on disk may differ from those in memory; they are never more or much longer.
    room = [f"{name}{' ' * 64}" for name in (*expected, *target.extra)]
    with ShardWriter(folder, room, max_shard_size) as writer:
        for name, tensor in target.to_disk(made):
            writer.add(name, tensor)
        for name, tensor in target.extra.items():
            writer.add(name, tensor)
        written = writer.finish()
    write_json(folder / "config.json", dict(target.config))
    for name, text in target.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    carry_files(source.path, folder)
    return written


def _told(made: Iterator[Named], step: Step, total: int) -> Iterator[Named]:
    for done, named in enumerate(made, start=1):
        yield named
        step(done, total)


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


def _expected(target: Target) -> dict[str, Tensor]:
    """Tensors to write, in the model's order; of tied ones the first name only."""
    skipped = {*(target.model._keys_to_ignore_on_save or ()), *target.skipped}
    expected: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in target.model.state_dict(keep_vars=True).items():
        if name not in skipped and id(tensor) not in seen:
            seen.add(id(tensor))
            expected[name] = tensor
    return expected


def _made(
    target: Target,
    expected: Mapping[str, Tensor],
    maker: TensorMaker,
    factors: Iterable[Named],
    dtype: torch.dtype,
) -> Iterator[Named]:
    """Every expected tensor, checked: what the method supplies first, then the rest."""
    left = dict(expected)
    for name, tensor in factors:
        if name not in left:
            raise SnapfitError(f"{name} is a tensor that the plan has no place for")
        cut = maker.cut_factor(name, tensor).to(dtype)
        yield name, _checked(name, cut, left.pop(name))
    modules = dict(target.model.named_modules())
    for module_name, module in modules.items():
        if isinstance(module, FactoredLinear):
            for name, tensor in maker.factored(module_name, module):
                if name in left:
                    yield name, _checked(name, tensor.to(dtype), left.pop(name))
        elif isinstance(module, AbsentPart):
            for leaf, tensor in module.state_dict().items():
                left.pop(f"{module_name}.{leaf}", None)
                yield f"{module_name}.{leaf}", torch.empty_like(tensor, device="cpu", dtype=dtype)
    for name, like in left.items():
        owner, _, leaf = name.rpartition(".")
        if owner.rpartition(".")[2] in {"a", "b"} or isinstance(modules[owner], nn.ModuleList):
            raise SnapfitError(f"no factor came for {name}; delete the work folder")
        yield name, _checked(name, _plain(name, owner, leaf, maker, like), like)


def _plain(name: str, owner: str, leaf: str, maker: TensorMaker, like: Tensor) -> Tensor:
    if leaf == "bias" and maker.gains_bias(owner):
        return maker.bias(owner)
    if leaf == "bias" and not maker.has(name):
        return torch.zeros(like.shape, dtype=maker.dtype)  # the format gives all layers a bias
    return maker.tensor(name)


def _checked(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.shape != like.shape:
        raise SnapfitError(
            f"{name} is {list(tensor.shape)}, the plan says {list(like.shape)}; "
            "delete the work folder"
        )
    if not torch.isfinite(tensor).all():
        raise SnapfitError(f"{name} holds NaN or infinity in {tensor.dtype}")
    return tensor
