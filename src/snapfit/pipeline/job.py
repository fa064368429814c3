"""One model under one set of options; every stage is made, or found, when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from snapfit.calib.collect import collect
from snapfit.calib.store import Statistics
from snapfit.calib.token_file import read_windows, save_windows
from snapfit.calib.tokens import Tokens, load_tokens
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.candidates import AlignRule
from snapfit.core.clock import Clock
from snapfit.core.curve import NATS, Curve
from snapfit.core.files import digest_files
from snapfit.core.options import Options
from snapfit.core.progress import Progress
from snapfit.core.space import Group, Space
from snapfit.core.workspace import Workspace
from snapfit.hardware.registry import resolve_target
from snapfit.methods._lowrank import COMPARABLE_NEEDS
from snapfit.methods._stage import order_layer
from snapfit.methods.base import Method
from snapfit.methods.registry import load_method, settings_of
from snapfit.models.describe import describe, empty_model, family, open_model, segments
from snapfit.models.source import ModelSource
from snapfit.models.weights import CheckpointReader, open_weights
from snapfit.nn.ordered import OrderedLayer, OrderedStore
from snapfit.nn.stream import LayerStream


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model under one set of options; every stage is made, or found, when first asked for."""

    model: str
    options: Options
    progress: Progress
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def workspace(self) -> Workspace:
        return Workspace.at(self.options.work)

    @cached_property
    def method(self) -> Method:
        return load_method(self.options.method, self.options.settings)

    @cached_property
    def rules(self) -> tuple[AlignRule, ...]:
        if self.options.align is not None:
            source = f"--align {self.options.align}"
            return (AlignRule(axis="rank", multiple=self.options.align, source=source),)
        if self.options.target is not None:
            return resolve_target(self.options.target).rules
        return ()

    @cached_property
    def source(self) -> ModelSource:
        return open_model(self.model, trust_remote_code=self.options.trust_remote_code)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        return empty_model(self.source)

    @cached_property
    def reader(self) -> CheckpointReader:
        return open_weights(self.source, self.skeleton)

    @cached_property
    def whole(self) -> Space:
        """Every compressible matrix of the model."""
        return describe(self.source, name=self.model, model=self.skeleton)

    @cached_property
    def space(self) -> Space:
        """What the method may touch."""
        data = family(self.source, self.skeleton)
        return self.method.restrict(self.whole, segments(self.source, self.whole, data))

    @cached_property
    def layers(self) -> dict[int, list[Group]]:
        layers: dict[int, list[Group]] = {}
        for group in self.space.groups:
            layers.setdefault(group.layer, []).append(group)
        return layers

    @cached_property
    def stream(self) -> LayerStream:
        data = family(self.source, self.skeleton)
        return LayerStream(self.skeleton, self.reader, data.layers)

    @cached_property
    def score(self) -> str | None:
        return self.options.score if self.options.objective in {"gac", "round"} else None

    @cached_property
    def in_nats(self) -> bool:
        """Whether curves of another unit must be made comparable."""
        return self.options.objective == "curve" and self.method.unit != NATS

    @cached_property
    def needs(self) -> frozenset[str]:
        """Statistics to collect: the method's, the proxy's, and what makes curves comparable."""
        needs = self.method.needs | (COMPARABLE_NEEDS if self.in_nats else frozenset())
        return needs | ({self.score} if self.score not in {None, "magnitude"} else frozenset())

    @cached_property
    def tokens(self) -> Tokens:
        options = self.options
        depends = {
            "revision": self.source.revision,
            "calib": _content_digest(options.calib),
            "count": options.calib_tokens,
            "context": options.context,
            "seed": options.seed,
        }
        path = self.workspace.folder("tokens", depends) / "tokens.safetensors"
        if not path.exists():
            with self.clock("tokens"):
                save_windows(path, self._load_tokens())
        found = read_windows(path)
        for note in found.notes:
            self.progress.note(note)
        return found

    def _load_tokens(self) -> Tokens:
        options = self.options
        from_self = options.calib == "self"
        return load_tokens(
            options.calib,
            tokenizer=None if from_self else load_tokenizer(self.source.path),
            model_loader=lambda: load(self.source.path, dtype=torch.float32),
            vocab_size=self.skeleton.get_input_embeddings().num_embeddings,
            count=options.calib_tokens,
            context=options.context,
            seed=options.seed,
            progress=StageProgress(self.progress),
        )

    @cached_property
    def statistics(self) -> Statistics:
        depends = {
            "revision": self.source.revision,
            "tokens": self.tokens.digest,
            "needs": sorted(self.needs),
            "seed": self.options.seed,
            "modules": sorted({group.matrices[0].name for group in self.space.groups}),
        }
        tokens = self.tokens
        with self.clock("statistics"):
            statistics = collect(
                self.stream,
                tokens,
                self.needs,
                self.workspace.folder("stats", depends),
                revision=self.source.revision,
                seed=self.options.seed,
                modules=depends["modules"],
                progress=StageProgress(self.progress),
            )
        for warning in statistics.warnings:
            self.progress.note(warning)
        return statistics

    @cached_property
    def store(self) -> OrderedStore:
        """The ordered bases, complete."""
        depends = {
            "revision": self.source.revision,
            "tokens": self.tokens.digest if self.needs else None,
            "needs": sorted(self.needs),
            "seed": self.options.seed if self.needs else None,
            "method": self.options.method,
            "settings": settings_of(self.method),
            "in_nats": self.in_nats,
            "score": self.score,
        }
        store = OrderedStore(self.workspace.folder("ordered", depends))
        missing = [layer for layer in self.layers if not store.has(layer)]
        if not missing:
            return store
        statistics = self.statistics if self.needs else None
        with self.clock("order"):
            self.progress.stage("order", len(self.layers))
            self.progress.advance(len(self.layers) - len(missing))
            for layer in missing:
                ordered, summaries = order_layer(
                    self.method,
                    self.layers[layer],
                    self.reader.get,
                    statistics.layer(layer) if statistics else {},
                    in_nats=self.in_nats,
                    score=self.score,
                )
                store.write(layer, ordered, summaries, self.source.dtype)
                self.progress.advance()
        return store

    @cached_property
    def ordered(self) -> dict[int, OrderedLayer]:
        """Curves and scalars of every layer."""
        return {layer: self.store.read(layer) for layer in self.layers}

    @cached_property
    def curves(self) -> dict[str, Curve]:
        return {name: c for layer in self.ordered.values() for name, c in layer.curves.items()}

    @cached_property
    def summaries(self) -> dict[str, Mapping[str, float]]:
        return {name: s for layer in self.ordered.values() for name, s in layer.summaries.items()}


class StageProgress:
    """A `Progress` as the callback (stage, done, total) that the streaming stages call."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage = ""
        self._done = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Open a bar when the stage changes, then move it to `done`."""
        if stage != self._stage:
            self._stage, self._done = stage, 0
            self._progress.stage(stage, total)
        if done > self._done:
            self._progress.advance(done - self._done)
            self._done = done


def _content_digest(calib: str) -> str:
    """A calibration file by its content, anything else by its name."""
    path = Path(calib)
    return digest_files([path]) if path.is_file() else calib
