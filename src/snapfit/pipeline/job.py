"""One model under one set of options; every stage is made, or found, when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from snapfit.calib.collect import collect
from snapfit.calib.mixture import content_name, needs_tokenizer
from snapfit.calib.store import Statistics, find_statistics
from snapfit.calib.token_file import read_windows, save_windows
from snapfit.calib.tokens import Tokens, load_tokens
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.candidates import AlignRule
from snapfit.core.clock import Clock
from snapfit.core.curve import NATS, Curve
from snapfit.core.files import check_writable, digest_json, read_kept, write_json
from snapfit.core.fitting import FormatRule, for_format, format_rules
from snapfit.core.options import DEFAULT_ALIGN, Options
from snapfit.core.progress import Progress
from snapfit.core.schedule import Schedule
from snapfit.core.space import Group, Space
from snapfit.core.workspace import Workspace
from snapfit.hardware.registry import resolve_target
from snapfit.methods._lowrank import COMPARABLE_NEEDS
from snapfit.methods._stage import order_layer
from snapfit.methods._width_stage import order_width_layer
from snapfit.methods.base import Method, RankMethod, WidthMethod
from snapfit.methods.registry import load_method, settings_of
from snapfit.models.describe import describe, empty_model, family, open_model, segments
from snapfit.models.source import ModelSource
from snapfit.models.weights import CheckpointReader, open_weights
from snapfit.nn.ordered import OrderedLayer, OrderedStore
from snapfit.nn.stream import LayerStream
from snapfit.pipeline.stages import StageProgress


@dataclass(frozen=True, kw_only=True)
class Job:
    """One model under one set of options; every stage is made, or found, when first asked for."""

    model: str
    options: Options
    progress: Progress
    clock: Clock = field(default_factory=Clock)

    @cached_property
    def workspace(self) -> Workspace:
        """Where everything reusable is kept."""
        found = Workspace.at(self.options.work)
        check_writable(found.root / "any")  # now, not after an hour of calibration
        return found

    @cached_property
    def method(self) -> Method:
        """The configured compressor."""
        return load_method(self.options.method, self.options.settings)

    @cached_property
    def rules(self) -> tuple[AlignRule, ...]:
        """Alignment rules of `--target` or `--align`, or the default."""
        if self.options.target is not None:
            return resolve_target(self.options.target).rules
        given = self.options.align
        multiple = DEFAULT_ALIGN if given is None else given
        source = f"default of {DEFAULT_ALIGN}" if given is None else f"--align {given}"
        return (AlignRule(axis="rank", multiple=multiple, source=source),)

    @cached_property
    def source(self) -> ModelSource:
        """The checked checkpoint."""
        return open_model(self.model, trust_remote_code=self.options.trust_remote_code)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model without weights, on the meta device."""
        return empty_model(self.source)

    @cached_property
    def reader(self) -> CheckpointReader:
        """The weights, by the names of `skeleton`."""
        return open_weights(self.source, self.skeleton)

    def dense_model(self) -> PreTrainedModel:
        """The whole model in memory in float32, experts unfused: for probes, not for streaming."""
        model = empty_model(self.source)
        self.reader.load_into(model, "", dtype=torch.float32)
        return model

    @cached_property
    def whole(self) -> Space:
        """Every compressible matrix of the model."""
        return describe(self.source, name=self.model, model=self.skeleton)

    @cached_property
    def space(self) -> Space:
        """What the method may touch and the format can hold."""
        data = family(self.source, self.skeleton)
        touched = self.method.restrict(self.whole, segments(self.source, self.whole, data))
        return for_format(self.options.format, touched)

    @cached_property
    def format_rules(self) -> tuple[FormatRule, ...]:
        """Sizes that the format can say."""
        return format_rules(self.options.format, self.space)

    @property
    def known_space(self) -> Space:
        """What is known of the space before anything that takes long."""
        return self.space

    @property
    def schedule(self) -> Schedule | None:
        """What the sizes of a group of layers mean; None for methods that remove none."""
        return None

    @cached_property
    def layers(self) -> dict[int, list[Group]]:
        """Groups by decoder layer."""
        layers: dict[int, list[Group]] = {}
        for group in self.space.groups:
            layers.setdefault(group.layer, []).append(group)
        return layers

    @cached_property
    def stream(self) -> LayerStream:
        """Runs the model a layer at a time."""
        data = family(self.source, self.skeleton)
        return LayerStream(self.skeleton, self.reader, data.layers)

    @cached_property
    def score(self) -> str | None:
        """Importance proxy that the objective needs, or None."""
        return self.options.score if self.options.objective in {"gac", "round"} else None

    @cached_property
    def needs(self) -> frozenset[str]:
        """Statistics to collect: the method's, the proxy's, and what makes curves comparable."""
        needs = self.method.needs
        if self.options.objective == "curve" and self.method.unit != NATS:
            needs |= COMPARABLE_NEEDS
        return needs | ({self.score} if self.score not in {None, "magnitude"} else frozenset())

    @property
    def calibrated(self) -> bool:
        """Whether the ordered bases depend on calibration tokens."""
        return bool(self.needs)

    @property
    def basis(self) -> str:
        """Name of what the curves were read from, for a plan's digests."""
        return self.store.folder.name

    @cached_property
    def tokens(self) -> Tokens:
        """Calibration windows."""
        options = self.options
        depends = {
            "revision": self.source.revision,
            "calib": content_name(options.calib),
            "count": options.calib_tokens,
            "context": options.context,
            "seed": options.seed,
        }
        if options.calib_template != "none":
            depends["template"] = options.calib_template
        path = self.workspace.folder("tokens", depends) / "tokens.safetensors"
        if not path.exists():
            with self.clock("tokens"):
                save_windows(path, self._load_tokens())
        return read_windows(path)

    def _load_tokens(self) -> Tokens:
        options, path = self.options, self.source.path
        trust = options.trust_remote_code
        asks = needs_tokenizer(options.calib, options.calib_template)
        return load_tokens(
            options.calib,
            tokenizer=load_tokenizer(path, trust_remote_code=trust) if asks else None,
            model_loader=lambda: load(path, dtype=torch.float32, trust_remote_code=trust),
            vocab_size=int(self.source.config.get_text_config().vocab_size),
            count=options.calib_tokens,
            context=options.context,
            seed=options.seed,
            template=options.calib_template,
            progress=StageProgress(self.progress),
        )

    @property
    def collected(self) -> Statistics | None:
        """Statistics of any job on the same tokens that are all that is needed, or more."""
        return find_statistics(self._statistics_root, needs=self.needs, modules=self._modules)

    @cached_property
    def statistics(self) -> Statistics | None:
        """Calibration statistics, complete; None for a job that needs no data.

        What an earlier job collected is used, so that objectives share ordered bases too.
        """
        if not self.needs:
            return None
        if (found := self.collected) is not None:
            return found
        key = digest_json({"needs": sorted(self.needs), "modules": self._modules})
        with self.clock("statistics"):
            return collect(
                self.stream,
                self.tokens,
                self.needs,
                self._statistics_root / key,
                revision=self.source.revision,
                seed=self.options.seed,
                modules=self._modules,
                progress=StageProgress(self.progress),
            )

    @property
    def _statistics_root(self) -> Path:
        depends = {
            "revision": self.source.revision,
            "tokens": self.tokens.digest,
            "seed": self.options.seed,
        }
        return self.workspace.folder("stats", depends)

    @property
    def _modules(self) -> list[str]:
        return sorted({matrix.name for group in self.space.groups for matrix in group.matrices})

    @cached_property
    def store(self) -> OrderedStore:
        """The ordered bases, complete."""
        statistics = self.statistics
        depends = {
            "revision": self.source.revision,
            "tokens": self.tokens.digest if statistics else None,
            "needs": sorted(statistics.needs) if statistics else [],
            "seed": self.options.seed if statistics else None,
            "method": self.options.method,
            "settings": settings_of(self.method),
        }
        store = OrderedStore(self.workspace.folder("ordered", depends))
        missing = [layer for layer in self.layers if not store.has(layer)]
        if not missing:
            return store
        with self.clock("order"):
            self.progress.stage("order", len(self.layers))
            self.progress.advance(len(self.layers) - len(missing))
            for layer in missing:
                seen = statistics.layer(layer) if statistics else {}
                groups, method = self.layers[layer], self.method
                if isinstance(method, RankMethod) and method.kind == "rank":
                    found = order_layer(method, groups, self.reader.get, seen)
                else:
                    found = order_width_layer(
                        cast("WidthMethod", method), groups, self.reader.get, seen
                    )
                ordered, summaries = found
                store.write(layer, ordered, summaries, self.source.dtype)
                self.progress.advance()
        return store

    def factors(self, layer: int, group: str, rank: int) -> tuple[Tensor, Tensor]:
        """The factor pair of a group: a (rank, in) and b (out, rank)."""
        return self.store.factors(layer, group, rank)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know before trusting the figures, such as too few tokens.

        Kept beside the ordered bases, because the statistics may have been deleted by then.
        """
        path = self.store.folder / "notes.json"
        if not path.exists():
            seen = self.statistics
            write_json(path, [*self.tokens.notes, *seen.warnings] if seen else [])
        return read_kept(path, lambda found: tuple(str(note) for note in found))

    @cached_property
    def ordered(self) -> dict[int, OrderedLayer]:
        """Curves and scalars of every layer."""
        return {layer: self.store.read(layer) for layer in self.layers}

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Loss curve of every group."""
        return {name: c for layer in self.ordered.values() for name, c in layer.curves.items()}

    @cached_property
    def summaries(self) -> dict[str, Mapping[str, float]]:
        """Scalars of every group."""
        return {name: s for layer in self.ordered.values() for name, s in layer.summaries.items()}
