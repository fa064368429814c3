"""Which changes of sizes would help most, each with what it would save on its own.

A rank is changed in both products of its pair at once, a width in gate, up and down, the features
of a head in the projections and the attention: what is saved is the difference of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from snapfit.core.answers import difference
from snapfit.core.diagnosis import Change, Misfit
from snapfit.core.examine import Edge, Examination, LayerView, shape_of
from snapfit.core.footprint import Found
from snapfit.core.forward import HEAD, Block, Module, Parts
from snapfit.core.operators import Elementwise, Source
from snapfit.core.space import Frame
from snapfit.core.suited import resized_blocks
from snapfit.core.workload import Phase

_MLP = frozenset({"gate", "up", "gate_up", "down"})
_ATTENTION = frozenset({"q", "k", "v", "qkv", "o"})

_NO_LAYER = -1

_Key = tuple[str, str, str]
"""Label, what the size counts, reason."""


@dataclass
class _Sum:
    """What one kind of change adds up to."""

    steps: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    saved: float = 0.0
    known: bool = True
    sources: set[Source] = field(default_factory=set)


def misfits(examination: Examination) -> tuple[Misfit, ...]:
    """Every matrix whose sizes break a rule of the target, with the nearest suited size."""
    found: list[Misfit] = []
    for view in examination.layers(examination.workload.phases[0]):
        for one, suited in zip(view.found, view.suited, strict=True):
            old = one.module
            pairs = [("rows", old.rows, suited.rows), ("columns", old.cols, suited.cols)]
            pairs += [
                ("rank", a.rank, b.rank) for a, b in zip(old.blocks, suited.blocks, strict=True)
            ]
            found += [
                Misfit(name=old.name, what=what, size=size, good=good)
                for what, size, good in pairs
                if size != good
            ]
    return tuple(found)


def changes(examination: Examination, edges: Mapping[Module, Edge]) -> tuple[Change, ...]:
    """All changes that help, the most helpful first.

    Without a timer those come first that reach the lowest tiers, then by the number of layers.
    """
    sums: dict[_Key, _Sum] = {}
    for phase in examination.workload.phases:
        for view in examination.layers(phase):
            for candidate in _candidates(view, edges):
                total = sums.setdefault(candidate.key, _Sum())
                total.steps.setdefault(candidate.step, set()).add(view.index)
                before, after = (
                    examination.parts(
                        [pair[i] for pair in candidate.pairs], frame, phase, view.experts
                    )
                    for i, frame in enumerate((view.frame, candidate.frame))
                )
                _add(examination, total, phase.weight, before, after)
        _add_vocabulary(examination, sums, phase)
    timed = examination.answers.watch is not None
    made = [
        Change(
            label=label,
            what=what,
            steps={step: len(layers - {_NO_LAYER}) for step, layers in total.steps.items()},
            reason=reason,
            saved=total.saved if timed and total.known else None,
            sources=tuple(sorted(total.sources)),
        )
        for (label, what, reason), total in sums.items()
    ]
    helpful = [change for change in made if change.saved is None or change.saved > 0]
    return tuple(
        sorted(helpful, key=lambda c: (-(c.saved or 0.0), _worst_tier(c), -sum(c.steps.values())))
    )


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A change in one layer: modules before and after, and the frame after."""

    key: _Key
    step: tuple[str, str]
    pairs: list[tuple[Module, Module]]
    frame: Frame


def _candidates(view: LayerView, edges: Mapping[Module, Edge]) -> Iterator[_Candidate]:
    """Every change that one layer offers."""
    pairs = list(zip(view.found, view.suited, strict=True))
    holders: dict[str, list[tuple[Found, Module]]] = {}
    for one, suited in pairs:
        old = one.module
        ranks, good = ([block.rank for block in m.blocks] for m in (old, suited))
        if ranks != good:
            yield _Candidate(
                key=(one.suffix, "rank", "alignment"),
                step=(_sizes(ranks), _sizes(good)),
                pairs=[(old, _with_ranks(old, good))],
                frame=view.frame,
            )
        if suited.blocks and (edge := edges.get(shape_of(suited))):
            yield _Candidate(
                key=(one.suffix, "rank", "wave"),
                step=(str(edge.full), str(edge.size)),
                pairs=[(suited, _with_ranks(suited, [edge.size]))],
                frame=view.frame,
            )
        if old.role in _MLP:
            holders.setdefault(old.holder, []).append((one, suited))
    for held in holders.values():
        yield from _widths(held, edges, view.frame)
    if view.frame.head_dim != view.suited_frame.head_dim:
        yield _Candidate(
            key=("attention", "head size", "alignment"),
            step=(str(view.frame.head_dim), str(view.suited_frame.head_dim)),
            pairs=[(one.module, suited) for one, suited in pairs if suited.role in _ATTENTION],
            frame=view.suited_frame,
        )


def _widths(
    held: list[tuple[Found, Module]], edges: Mapping[Module, Edge], frame: Frame
) -> Iterator[_Candidate]:
    """Changes of the width of one MLP."""
    label = held[0][0].suffix.rpartition(".")[0]
    steps = {_width(one.module): _width(suited) for one, suited in held}
    for width, good in steps.items():
        if width != good:
            yield _Candidate(
                key=(label, "width", "alignment"),
                step=(str(width), str(good)),
                pairs=[(one.module, _resized(one.module, good)) for one, _ in held],
                frame=frame,
            )
    found = (edges.get(shape_of(suited)) for _, suited in held if not suited.blocks)
    for edge in [edge for edge in found if edge is not None][:1]:
        yield _Candidate(
            key=(label, "width", "wave"),
            step=(str(edge.full), str(edge.size)),
            pairs=[(suited, _resized(suited, edge.size)) for _, suited in held],
            frame=frame,
        )


def _add(examination: Examination, total: _Sum, weight: float, before: Parts, after: Parts) -> None:
    for name, counted in before.items():
        for (operator, times), (other, _) in zip(counted, after[name], strict=True):
            if operator == other or isinstance(operator, Elementwise):
                continue
            now = examination.answers.time(operator)
            then = examination.answers.time(other)
            if now is None or then is None:
                total.known = False
                continue
            total.sources |= {now.source, then.source}
            total.saved += weight * times * difference(now, then)


def _add_vocabulary(examination: Examination, sums: dict[_Key, _Sum], phase: Phase) -> None:
    frame = examination.footprint.frame
    padded = examination.suited.frame(frame, frame.head_dim).vocab
    if padded == frame.vocab:
        return
    total = sums.setdefault(("lm_head", "vocabulary", "alignment"), _Sum())
    total.steps[str(frame.vocab), str(padded)] = {_NO_LAYER}
    before = examination.head(frame, phase)
    after = examination.head(replace(frame, vocab=padded), phase)
    _add(examination, total, phase.weight, {HEAD: before[HEAD]}, after)


def _width(module: Module) -> int:
    if module.role == "down":
        return module.cols
    return module.rows // (2 if module.role == "gate_up" else 1)


def _resized(module: Module, width: int) -> Module:
    """A module of an MLP with another width; the rank of a pair stays."""
    if module.role == "down":
        return replace(module, cols=width)
    rows = width * (2 if module.role == "gate_up" else 1)
    return replace(module, rows=rows, blocks=resized_blocks(module, rows))


def _with_ranks(module: Module, ranks: list[int]) -> Module:
    blocks = tuple(Block(rows=b.rows, rank=r) for b, r in zip(module.blocks, ranks, strict=True))
    return replace(module, blocks=blocks)


def _worst_tier(change: Change) -> int:
    sizes = (int(size) for old, _ in change.steps for size in old.split("/"))
    return min(min(size & -size, 16) for size in sizes)


def _sizes(sizes: list[int]) -> str:
    return "/".join(map(str, sizes))
