"""Whole models of given sizes with random weights, and the time of their passes.

Latency reads no weight, so a model of any plan is made from a `config.json` and the plan's sizes.
It runs as transformers runs it, eagerly and without CUDA graphs, in this package's own layers.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.space import Space
from snapfit.core.structure import Structure
from snapfit.core.workload import Phase
from snapfit.hardware.cuda import clocked
from snapfit.models.shapes import open_shapes
from snapfit.models.source import empty_model
from snapfit.nn.cache import cache_argument
from snapfit.nn.surgery import reshape

SCALE = 0.02
"""Of the random weights: small, so that nothing overflows."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """How often a pass is timed: `trials` times `timed` runs after `warm_up` others."""

    warm_up: int
    timed: int
    trials: int


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One pass of two models, timed in turn.

    Attributes:
        dense_ms: median of the dense model's runs.
        ms: of the other's.
        spread: half the interquartile range of the other's runs over their median.
        speedup: median over the trials of the ratio of both medians.
        speedup_spread: half the range of these ratios.

    """

    dense_ms: float
    ms: float
    spread: float
    speedup: float
    speedup_spread: float


def structure_of(space: Space, sizes: Mapping[str, int]) -> Structure:
    """Layers of the model at `sizes`: factor pairs of rank groups, narrower ones of widths."""
    modules = {}
    for group in space.groups:
        size = sizes.get(group.name, group.full)
        if size == group.full:
            continue
        for matrix in group.matrices:
            rows, cols = matrix.rows, matrix.cols
            if matrix.axis == "out":
                rows = rows * size // group.full
            elif matrix.axis == "in":
                cols = cols * size // group.full
            block = Block(rows=rows, rank=size if matrix.axis == "rank" else None)
            modules[matrix.name] = ModuleLayout(inputs=cols, blocks=(block,))
    return Structure(modules=modules)


def random_model(folder: Path, structure: Structure, device: torch.device) -> PreTrainedModel:
    """The model of a `config.json` in `folder`, of these sizes, its weights random."""
    model = empty_model(open_shapes(folder))
    reshape(model, structure)
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                new = torch.empty(old.shape, dtype=old.dtype, device=device).normal_(std=SCALE)
                module._parameters[name] = nn.Parameter(new, requires_grad=False)
    return model.to(device)


def compare(dense: PreTrainedModel, other: PreTrainedModel, phase: Phase, runs: Runs) -> Compared:
    """Time a pass of both, trial by trial in turn, so that the clocks are alike for both."""
    calls = [step(model, phase) for model in (dense, other)]
    device = next(dense.parameters()).device
    trials = [[_milliseconds(call, device, runs) for call in calls] for _ in range(runs.trials)]
    first, second = (np.concatenate([trial[i] for trial in trials]) for i in range(2))
    low, median, high = np.percentile(second, (25, 50, 75))
    ratios = [np.median(a) / np.median(b) for a, b in trials]
    return Compared(
        dense_ms=float(np.median(first)),
        ms=float(median),
        spread=float((high - low) / 2 / median),
        speedup=float(np.median(ratios)),
        speedup_spread=float(max(ratios) - min(ratios)) / 2,
    )


def step(model: PreTrainedModel, phase: Phase) -> Callable[[], object]:
    """A call that does one pass: a prefill without a past, or one token after a full cache.

    After a decoding step the cache is cut back, so that every call does the same; the next step
    copies it when it appends, as every step of `generate` does.
    """
    config: Any = model.config
    device = next(model.parameters()).device
    ids_BT = torch.randint(config.vocab_size, (phase.batch, phase.query), device=device)
    if phase.kind == "prefill":
        return lambda: model(ids_BT, use_cache=True, logits_to_keep=1)
    cache = DynamicCache(config=config)
    past = phase.tokens - 1
    shape = (phase.batch, config.num_key_value_heads, past, config.head_dim)
    for layer in range(config.num_hidden_layers):
        for_layer = [torch.randn(shape, device=device).to(model.dtype) for _ in range(2)]
        cache.update(*for_layer, layer)

    held = cache_argument(model)

    def decode() -> object:
        logits = model(ids_BT, **{held: cache}, use_cache=True, logits_to_keep=1)
        cache.crop(-1)
        return logits

    return decode


def _milliseconds(call: Callable[[], object], device: torch.device, runs: Runs) -> Sequence[float]:
    """CUDA events on a GPU, a clock of the machine elsewhere."""
    cuda = device.type == "cuda"
    event = functools.partial(torch.cuda.Event, enable_timing=True) if cuda else _Instant
    with torch.inference_mode():
        return clocked(
            lambda: call,
            event,
            torch.cuda.synchronize if cuda else _done,
            warm_up=runs.warm_up,
            timed=runs.timed,
        )


class _Instant:
    """A clock in the place of a CUDA event; a CPU has nothing to wait for.

    One thread is timed by its processor time, so that what else runs counts little.
    """

    def record(self) -> None:
        """Now."""
        alone = torch.get_num_threads() == 1
        self._at = time.process_time() if alone else time.perf_counter()

    def elapsed_time(self, later: _Instant) -> float:
        """Milliseconds until `later`."""
        return (later._at - self._at) * 1e3


def _done() -> None:
    """What was called on a CPU is over when the call returns."""
