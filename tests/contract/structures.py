"""Plans of every kind for tiny models, and what they should compute, made without surgery.

The references are dense models in which what a plan removes is silenced: columns of down and
output projections set to zero. That is the same function as the smaller model's, so the logits
agree up to rounding.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_models import build, logits, sample_ids
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.formats import save
from snapfit.checkpoint.save import Named
from snapfit.core.combination import collapse, untouched
from snapfit.core.cuts import cuts_of, structure_of
from snapfit.core.formats import require_holds
from snapfit.core.renaming import EXPERT, Index, layers_path
from snapfit.core.schedule import Depth, Schedule
from snapfit.core.space import Group, Space
from snapfit.models.describe import describe, empty_model
from snapfit.models.source import ModelSource, open_model
from snapfit.models.weights import open_weights


@dataclass(frozen=True, kw_only=True)
class Case:
    """A tiny model and what a plan makes of it."""

    source: ModelSource
    space: Space
    sizes: dict[str, int]
    orders: dict[str, Index]
    schedule: Schedule | None = None
    means: dict[str, Tensor] | None = None

    @property
    def blueprint(self) -> Blueprint:
        """How the compressed model is made."""
        means = self.means or {}
        biased = {
            group.name
            for group in self.space.groups
            for matrix in group.matrices
            if matrix.axis == "in" and matrix.name in means
        }
        structure = structure_of(
            self.space, self.sizes, schedule=self.schedule, orders=self.orders, biased=biased
        )
        return Blueprint(
            structure=structure,
            cuts=cuts_of(self.space, self.sizes, self.orders),
            means=means,
            path=layers_path(self.space),
        )

    def save(
        self, folder: Path, format_name: str = "factored", factors: tuple[Named, ...] = ()
    ) -> Path:
        """Write the compressed model."""
        blueprint = self.blueprint
        require_holds(format_name, blueprint.structure, self.space)
        folder.mkdir()
        model = empty_model(self.source)
        save(
            folder,
            source=self.source,
            model=model,
            reader=open_weights(self.source, model),
            blueprint=blueprint,
            factors=factors,
            format_name=format_name,
        )
        return folder

    def kept(self, group: Group) -> Index:
        """Kept units of a group."""
        return np.sort(self.orders[group.name][: self.sizes[group.name]])


def two_of_three(*, merge: bool) -> Schedule:
    """Two of three layers left: layer 1 dropped, or merged into layer 0 as LaCo does."""
    whole = untouched(range(3))
    left = collapse(whole, 0, 2) if merge else (whole[0], whole[2])
    return Schedule(
        full=3,
        sizes={3: Depth(layers=whole), 2: Depth(layers=left)},
        losses={3: 0.0, 2: 1.0},
        unit="nats",
    )


def case(
    architecture: str,
    folder: Path,
    sizes: dict[str, int] | None = None,
    schedule: Schedule | None = None,
    **changes: Any,
) -> Case:
    """A case whose sizes are given by group, or by kind and role, e.g. {'width': 20}."""
    source = open_model(build(architecture, folder, **changes))
    space = describe(source, name=architecture)
    return resized(
        Case(source=source, space=space, sizes={}, orders={}, schedule=schedule), sizes or {}
    )


def resized(given: Case, sizes: dict[str, int]) -> Case:
    """The same model at other sizes, with random orders."""
    generator = random.Random(7)
    chosen, orders = {}, {}
    for group in given.space.groups:
        size = sizes.get(group.name, sizes.get(group.kind, group.full))
        if isinstance(size, int) and size < group.full:
            chosen[group.name] = size
            order = list(range(group.full))
            generator.shuffle(order)
            orders[group.name] = np.array(order)
    return replace(given, sizes=chosen, orders=orders)


def dense(given: Case) -> PreTrainedModel:
    """The uncompressed model in memory, experts unfused."""
    model = empty_model(given.source)
    open_weights(given.source, model).load_into(model, "")
    return model


@torch.no_grad()
def silenced(given: Case) -> PreTrainedModel:
    """The dense model, in which the removed channels, heads, parts and layers add nothing."""
    model = dense(given)
    gone = merge_layers(model, given)
    for group in given.space.groups:
        cut = group.name in given.sizes or group.layer in gone
        if not cut or group.kind not in {"width", "kv_heads"}:
            continue
        size = 0 if group.layer in gone else given.sizes[group.name]
        kept = given.kept(group) if size else np.array([], dtype=int)
        for matrix in group.matrices:
            if matrix.axis == "in":
                silence(model.get_submodule(matrix.name), kept, group.full, keep_bias=size > 0)
        for vector in group.vectors if size else ():
            name = vector.name.removesuffix(".weight")
            norm = model.get_submodule(name)
            each = vector.length // group.full
            rows = (kept[:, None] * each + np.arange(each)).reshape(-1)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, NormOfSome(norm, torch.from_numpy(rows)))
    return model


def merge_layers(model: PreTrainedModel, given: Case) -> set[int]:
    """Merge what the schedule merges, in place; the layers that are no base of any output layer."""
    path = layers_path(given.space)
    if given.schedule is None:
        return set()
    layers = list(model.get_submodule(path).children())
    depth = given.schedule.at(given.sizes[path])
    for mix in depth.layers:
        if len(mix) > 1:
            tables = [(dict(layers[source].named_parameters()), c) for source, c in mix]
            sums = {n: sum(c * table[n] for table, c in tables) for n in tables[0][0]}
            for name, parameter in layers[mix[0][0]].named_parameters():
                parameter.copy_(sums[name])
    return set(range(len(layers))) - set(depth.sources)


def silence(module: nn.Module, kept: Index, full: int, *, keep_bias: bool) -> None:
    """Zero the columns of units that are not kept."""
    assert isinstance(module, nn.Linear)
    each = module.in_features // full
    mask = torch.zeros(module.in_features)
    for unit in kept:
        mask[unit * each : (unit + 1) * each] = 1
    module.weight.mul_(mask)
    if module.bias is not None and not keep_bias:
        module.bias.zero_()


class NormOfSome(nn.Module):
    """A norm over all heads that sees the kept ones only."""

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        super().__init__()
        self.kept = kept
        self.norm = norm
        norm.weight = nn.Parameter(norm.weight[kept])  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        output[..., self.kept] = self.norm(x[..., self.kept])
        return output


def assert_equal_functions(model: PreTrainedModel, reference: PreTrainedModel) -> None:
    """Logits agree as far as rounding lets them, and are not trivial."""
    ours, theirs = logits(model), logits(reference)
    assert float(theirs.std()) > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * float(theirs.abs().max()))


@torch.no_grad()
def generated(model: PreTrainedModel, *, use_cache: bool) -> Tensor:
    """Greedy tokens after a batch of prompts."""
    ids = sample_ids(batch=2, length=5)
    return model.eval().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        use_cache=use_cache,
        max_new_tokens=14,
        min_new_tokens=14,
        do_sample=False,
    )


@torch.no_grad()
def with_fewer_experts(given: Case, setting: str) -> PreTrainedModel:
    """transformers' own model with the kept experts, its weights copied by hand."""
    whole = AutoModelForCausalLM.from_pretrained(given.source.path)
    groups = {group.name: group for group in given.space.groups if group.kind == "experts"}
    config = copy.deepcopy(whole.config)
    count = next(iter(given.sizes[name] for name in groups if name in given.sizes))
    setattr(config, setting, count)
    small = AutoModelForCausalLM.from_config(config)
    state = whole.state_dict()
    for name, group in groups.items():
        kept = torch.from_numpy(given.kept(group))
        block = name.removesuffix("experts")
        for key in [key for key in state if key.startswith((f"{name}.", f"{block}gate."))]:
            state[key] = state[key][kept]
    small.load_state_dict(state)
    return small


def is_expert(group: Group) -> bool:
    """Whether a width group is one expert's."""
    return EXPERT.match(group.name) is not None
