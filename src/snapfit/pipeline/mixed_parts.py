"""The single methods of a mixed plan, and the ordered bases of all of them as one store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from snapfit.calib.tokens import Tokens
from snapfit.core.errors import UsageError
from snapfit.core.options import MIXED, Options
from snapfit.core.space import Space
from snapfit.methods._depth import part_of
from snapfit.methods.base import MethodKind
from snapfit.methods.registry import load_method, settings_of
from snapfit.models.source import ModelSource
from snapfit.models.weights import CheckpointReader
from snapfit.nn.ordered import OrderedLayer, OrderedStore
from snapfit.nn.stream import LayerStream
from snapfit.pipeline.job import Job


@dataclass(frozen=True, kw_only=True)
class PartJob(Job):
    """One method of several, on the same model and tokens.

    Attributes:
        owner: whose model and tokens are used, such as the mixed job.

    """

    owner: Job

    @cached_property
    def source(self) -> ModelSource:
        """The owner's."""
        return self.owner.source

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The owner's."""
        return self.owner.skeleton

    @cached_property
    def reader(self) -> CheckpointReader:
        """The owner's."""
        return self.owner.reader

    @cached_property
    def whole(self) -> Space:
        """The owner's."""
        return self.owner.whole

    @cached_property
    def stream(self) -> LayerStream:
        """The owner's."""
        return self.owner.stream

    @cached_property
    def tokens(self) -> Tokens:
        """The owner's."""
        return self.owner.tokens

    @property
    def has_statistics(self) -> bool:
        """Whether all that the method needs has been collected, by whatever job."""
        return not self.needs or self.collected is not None


class MixedStore(OrderedStore):
    """The ordered bases of several methods, asked by group."""

    def __init__(self, stores: Mapping[str, OrderedStore]) -> None:
        """Take over `stores`, by the names of the groups that they hold."""
        self._stores = dict(stores)
        self._distinct = tuple({store.folder: store for store in stores.values()}.values())
        super().__init__(self._distinct[0].folder)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Of the methods' own stores."""
        return tuple(store.folder for store in self._distinct)

    def has(self, layer: int) -> bool:
        """Whether any store has something about the layer: some methods skip layers."""
        return any(store.has(layer) for store in self._distinct)

    def read(self, layer: int) -> OrderedLayer:
        """Curves and scalars of one layer, of all methods."""
        found = [store.read(layer) for store in self._distinct if store.has(layer)]
        return OrderedLayer(
            curves={name: curve for one in found for name, curve in one.curves.items()},
            summaries={name: s for one in found for name, s in one.summaries.items()},
        )

    def factors(self, layer: int, group: str, rank: int) -> tuple[Tensor, Tensor]:
        """The factor pair of a rank group."""
        return self._stores[group].factors(layer, group, rank)

    def tensor(self, layer: int, group: str, key: str) -> Tensor | None:
        """What the group's method left under `key`."""
        return self._stores[group].tensor(layer, group, key)


def parts_of_job(owner: Job) -> dict[MethodKind, PartJob]:
    """A job for each of the methods that a mixed job names, by what they decide.

    Raises:
        UsageError: they are not one method that factors, one that narrows, and perhaps one that
            removes layers; a setting that none of them has, or that has no meaning here.

    """
    options = owner.options
    text = MIXED if options.method == "mixed" else options.method
    names = [name.strip() for name in text.split("+")]
    methods = {name: load_method(name) for name in names}
    kinds = sorted(method.kind for method in methods.values())
    if len(methods) != len(names) or kinds not in (["rank", "width"], ["depth", "rank", "width"]):
        found = ", ".join(f"{name} ({method.kind})" for name, method in methods.items())
        raise UsageError(
            f"--method {options.method} mixes {found}; name one method that factors, one that "
            f"narrows, and perhaps one that removes layers, such as {MIXED}"
        )
    known = {name: set(settings_of(method)) for name, method in methods.items()}
    for key in options.settings:
        if not any(key in fields for fields in known.values()):
            every = ", ".join(sorted(set().union(*known.values()))) or "none"
            raise UsageError(f"{options.method} has no setting {key!r}; it has: {every}")
    jobs = {
        method.kind: PartJob(
            model=owner.model,
            options=_single(options, name, known[name]),
            progress=owner.progress,
            clock=owner.clock,
            owner=owner,
        )
        for name, method in methods.items()
    }
    _check(jobs)
    return jobs


def _single(options: Options, name: str, fields: set[str]) -> Options:
    """The options of one method alone; the format is checked for the whole plan."""
    settings = {key: value for key, value in options.settings.items() if key in fields}
    return replace(options, method=name, settings=settings, format="factored")


def _check(jobs: Mapping[MethodKind, PartJob]) -> None:
    width, depth = jobs["width"].method, jobs.get("depth")
    if "experts" in dict(dataclasses.asdict(width)).get("parts", ""):  # type: ignore[call-overload]
        raise UsageError(
            "a mixed plan narrows experts and does not remove them: leave out 'experts'"
        )
    if depth is not None and part_of(depth.method) != "layer":
        raise UsageError(
            "a mixed plan decides about attention and MLP by itself; leave out the setting 'part'"
        )
