"""What every checkpoint format can hold, asked before anything is solved or written.

    factored    everything; loads with our plug-in
    standalone  the same; a modelling file lies beside the weights
    stock       what a configuration can say: layers dropped or merged, one MLP width, one head
                count and one number of experts for all layers; loads anywhere
    folded      as stock, and factors, which are multiplied back: no speed-up
    decilm      Llama-like: widths by layer, attention or MLP removed, one head count for all layers

A plan is made for a format: `ties` and `kinds` restrict what the solver may choose, and `refusal`
says why a structure does not fit. All need the space and counts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

from snapfit.core.errors import UsageError
from snapfit.core.names import unknown_name
from snapfit.core.renaming import EXPERT, Names, layers_path
from snapfit.core.settings import (
    ALWAYS_BIASED,
    ATTENTION_BIAS,
    EXPERT_COUNT_SETTINGS,
    EXPERT_MULTIPLE,
    EXPERT_WIDTH_SETTINGS,
    HEADS_BY_CONFIG,
    HEADS_DIVIDE_HIDDEN,
    LLAMA_LIKE,
    MLP_BIAS,
    WIDTH_SETTINGS,
)
from snapfit.core.space import Group, Kind, Space
from snapfit.core.structure import Structure

Format = Literal["factored", "stock", "decilm", "standalone", "folded"]

FREE = frozenset({"factored", "standalone"})
"""Formats that hold every structure."""


def check_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UsageError: there is none.

    """
    if name not in get_args(Format):
        raise unknown_name("format", name, get_args(Format))
    known: Format = name  # type: ignore[assignment]
    return known


def kinds(name: str) -> frozenset[Kind]:
    """Kinds of groups that a plan for the format may decide about."""
    format_ = check_format(name)
    known: frozenset[Kind] = frozenset(get_args(Kind))
    if format_ == "stock":
        return known - {"rank"}
    if format_ == "decilm":
        return known - {"rank", "experts"}
    return known


def holds_absent(name: str) -> bool:
    """Whether attention or MLP of one layer may be removed alone (size 0 of a group)."""
    return check_format(name) not in {"stock", "folded"}


def ties(name: str, space: Space) -> tuple[tuple[str, ...], ...]:
    """Groups of the space that must get one common size, beside its own ties."""
    format_ = check_format(name)
    if format_ in FREE:
        return ()
    sets: dict[tuple[str, bool], list[str]] = {}
    for group in space.groups:
        if group.kind in {"kv_heads", "experts"} or (group.kind == "width" and format_ != "decilm"):
            sets.setdefault((group.kind, _of_expert(group)), []).append(group.name)
    return tuple(tuple(names) for names in sets.values() if len(names) > 1)


def holds_size(name: str, group: Group, size: int, space: Space) -> bool:
    """Whether a group may have `size` in the format: what a solver needs beside `ties`.

    False for heads that the configuration refuses, and for a part that cannot be left out alone.
    """
    format_ = check_format(name)
    if format_ in FREE or size == group.full:
        return True
    if size == 0 and group.kind != "depth":
        return holds_absent(format_)
    if _of_expert(group):
        return size % EXPERT_MULTIPLE == 0
    if group.kind == "kv_heads" and space.frame is not None:
        heads = space.frame.heads * size // group.full
        return space.architecture in HEADS_BY_CONFIG and _divides(format_, space, heads)
    return True


def _divides(format_: Format, space: Space, heads: int) -> bool:
    if space.frame is None:
        return True
    bound = format_ == "decilm" or space.architecture in HEADS_DIVIDE_HIDDEN
    return not bound or space.frame.hidden % heads == 0


def refusal(name: str, structure: Structure, space: Space) -> str | None:
    """Why the format cannot hold a structure; None when it can.

    Args:
        name: of the format.
        structure: of the compressed model.
        space: the whole space that the structure was made from.

    Raises:
        UsageError: there is no such format.

    """
    format_ = check_format(name)
    if format_ in FREE:
        return None
    return next(_reasons(format_, structure, space), None)


def _reasons(format_: Format, structure: Structure, space: Space) -> Iterator[str]:
    architecture = space.architecture
    if format_ == "decilm" and architecture not in LLAMA_LIKE:
        yield f"decilm holds Llama-like models only, not {architecture}; use factored"
    if structure.ranks and format_ != "folded":
        yield f"{format_} holds no factors; use factored, standalone or folded"
    if structure.absent and not holds_absent(format_):
        part = next(iter(structure.absent))
        yield f"{format_} cannot leave {part} out alone; use factored, standalone or decilm"
    kept = _Kept(structure=structure, space=space)
    if format_ == "decilm":
        yield from _first_attention(structure, kept)
    else:
        yield from _uniform("MLP width", format_, kept.widths(experts=False), kept)
        yield from _uniform("width of experts", format_, kept.widths(experts=True), kept)
        odd = [size for size in kept.widths(experts=True) if size % EXPERT_MULTIPLE]
        if odd and _narrowed(structure, experts=True):
            yield (
                f"{format_} cannot hold experts of width {odd[0]}: transformers needs multiples of "
                f"{EXPERT_MULTIPLE}; use factored"
            )
        yield from _uniform("number of experts", format_, kept.counts("experts"), kept)
        yield from _settings(format_, structure, architecture)
    yield from _uniform("number of heads", format_, kept.counts("kv_heads"), kept)
    if structure.heads and architecture not in HEADS_BY_CONFIG:
        yield (
            f"{format_} cannot hold fewer heads of {architecture}: its configuration ties them to "
            "the hidden size; use factored"
        )
    for attention, (heads, _) in structure.heads.items():
        if not _divides(format_, space, heads):
            yield (
                f"{format_} cannot hold the {heads} heads of {attention}: its configuration "
                "refuses counts that do not divide the hidden size; use factored"
            )
    yield from _biases(format_, structure, architecture)


class _Kept:
    """Sizes of the groups that are in the compressed model."""

    def __init__(self, *, structure: Structure, space: Space) -> None:
        self.structure = structure
        self.names = Names(path=layers_path(space), layers=structure.layers)
        self.groups = [
            group
            for group in space.groups
            if group.kind not in {"rank", "depth"} and self.names.output(group.name) is not None
        ]

    def widths(self, *, experts: bool) -> set[int]:
        """Widths of all MLPs, or of all experts."""
        found = set()
        for group in self.groups:
            if group.kind == "width" and _of_expert(group) == experts:
                for matrix in group.matrices:
                    new = self.names.output(matrix.name)
                    if matrix.axis == "in" and new is not None and not self._gone(new):
                        layout = self.structure.modules.get(new)
                        found.add(matrix.cols if layout is None else layout.inputs)
        return found

    def counts(self, kind: Literal["kv_heads", "experts"]) -> set[int]:
        """Key-value heads of all layers with attention, or experts of all containers."""
        left = {name: kv_heads for name, (_, kv_heads) in self.structure.heads.items()}
        left |= self.structure.experts
        return {
            left.get(new, group.full)
            for group in self.groups
            if group.kind == kind
            and (new := self.names.output(group.name)) is not None
            and not self._gone(new)
        }

    def _gone(self, name: str) -> bool:
        """Whether an expert, or a part, is not in the compressed model."""
        if expert := EXPERT.match(name):
            count = self.structure.experts.get(expert[1])
            if count is not None and int(expert[2]) >= count:
                return True
        return any(f"{name}.".startswith(f"{part}.") for part in self.structure.absent)


def _of_expert(group: Group) -> bool:
    return group.kind == "width" and EXPERT.match(group.name) is not None


def _uniform(what: str, format_: Format, found: set[int], kept: _Kept) -> Iterator[str]:
    if len(found) > 1 and kept.structure.changed:
        shown = ", ".join(map(str, sorted(found)[:6]))
        yield (
            f"{format_} holds one {what} for all layers, the plan has {shown}; "
            "use factored, or plan again with this format"
        )


def _settings(format_: Format, structure: Structure, architecture: str) -> Iterator[str]:
    """Whether the architecture's settings for what is changed are known."""
    for what, table, changed in (
        ("MLPs", WIDTH_SETTINGS, _narrowed(structure, experts=False)),
        ("experts", EXPERT_WIDTH_SETTINGS, _narrowed(structure, experts=True)),
        ("numbers of experts", EXPERT_COUNT_SETTINGS, bool(structure.experts)),
    ):
        if changed and architecture not in table:
            yield (
                f"{format_} cannot hold smaller {what} of {architecture}: snapfit does not know "
                "which setting says so; use factored"
            )


def _narrowed(structure: Structure, *, experts: bool) -> bool:
    """Whether a linear layer outside of attention is changed other than by rank."""
    return any(
        not layout.ranks and (EXPERT.match(name) is not None) == experts
        for name, layout in structure.modules.items()
        if not _in_attention(structure, name)
    )


def _in_attention(structure: Structure, name: str) -> bool:
    return any(name.startswith(f"{attention}.") for attention in structure.heads)


def _biases(format_: Format, structure: Structure, architecture: str) -> Iterator[str]:
    if architecture in ALWAYS_BIASED:
        return
    for name, layout in structure.modules.items():
        if layout.bias:
            attention = _in_attention(structure, name)
            if architecture not in (ATTENTION_BIAS if attention else MLP_BIAS):
                yield (
                    f"{format_} cannot hold the bias of {name}: {architecture} has no setting for "
                    "it; use factored, or a method that adds no bias"
                )


def _first_attention(structure: Structure, kept: _Kept) -> Iterator[str]:
    first = f"{kept.names.path}.0."
    if any(n.startswith(first) and part == "attention" for n, part in structure.absent.items()):
        yield (
            "decilm cannot leave out the first layer's attention alone: vLLM's DeciLM adds its "
            "input there; use factored"
        )


def require_holds(name: str, structure: Structure, space: Space) -> None:
    """Raise where `refusal` has a reason.

    Raises:
        UsageError: with the reason, or there is no such format.

    """
    if reason := refusal(name, structure, space):
        raise UsageError(reason)
