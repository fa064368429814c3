"""The operators of one forward pass of a model whose groups have given sizes.

Counted as transformers runs it, operator by operator: every matrix is a product of its own, a
factor pair is two, element-wise kernels are not fused, and the output layer reads only the last
token of each sequence, as `generate` asks. What is not counted: biases, query and key norms,
masks, the embedding look-up, and the exchange between devices when `shards` > 1. Attention is
over the whole context, also where a model has a sliding window.

A mixture of experts is taken to spread its tokens evenly: each expert that is hit, and the number
of these is the expected one, computes an equal share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from snapfit.core.errors import SnapfitError
from snapfit.core.operators import Attention, Elementwise, Linear, Operator
from snapfit.core.space import Frame, Group, Space
from snapfit.core.workload import Phase

Counted = tuple[Operator, float]
"""An operator and how often it runs; a fraction for experts that are hit now and then."""

Parts = dict[str, list[Counted]]
"""Operators by the part of the layer that they belong to: a module, or what holds modules."""

HEAD = "head"
"""The part that is the final norm and the output layer."""

_ATTENTION_IN = frozenset({"q", "k", "v", "qkv"})
_MLP_IN = frozenset({"gate", "up", "gate_up"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows of a module that are a factor pair."""

    rows: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class Module:
    """A linear layer as it is at some sizes.

    Attributes:
        name: qualified name.
        role: as in `Group.role`.
        layer: of the decoder.
        rows: output features left.
        cols: input features left.
        blocks: rows that are factor pairs; the rest is dense.

    """

    name: str
    role: str
    layer: int
    rows: int
    cols: int
    blocks: tuple[Block, ...] = ()

    @property
    def holder(self) -> str:
        """What the module is part of: the attention, the MLP, or one expert."""
        return self.name.rpartition(".")[0]

    @property
    def experts(self) -> str | None:
        """The container of experts that the module lies in, if any."""
        return expert_holder(self.name)


def expert_holder(module: str) -> str | None:
    """The container of the experts that a module is part of: its name has a second number."""
    holder = module.rpartition(".")[0]
    numbers = [part for part in holder.split(".") if part.isdigit()]
    return holder.rpartition(".")[0] if len(numbers) > 1 else None


def dense_modules(whole: Space) -> tuple[Module, ...]:
    """Every linear layer of the decoder, from the rank groups of an unrestricted space."""
    modules: dict[str, Module] = {}
    for group in whole.groups:
        matrix = group.matrices[0] if group.matrices else None
        if group.kind == "rank" and matrix is not None and matrix.name == group.name:
            modules[matrix.name] = Module(
                name=matrix.name,
                role=group.role,
                layer=group.layer,
                rows=matrix.rows,
                cols=matrix.cols,
            )
    return tuple(modules.values())


def resized(
    modules: Iterable[Module], groups: Iterable[Group], sizes: Mapping[str, int]
) -> tuple[Module, ...]:
    """The modules when `groups` have `sizes`; a module of no rows or no columns is gone.

    Rank groups make factor pairs, of rows that a width group may have narrowed at the same time;
    'experts' and 'depth' change how often modules run, not what they are.
    """
    dense = {module.name: module for module in modules}
    left = dict(dense)
    chosen = [(group, sizes.get(group.name, group.full)) for group in groups]
    for group, size in chosen:
        if group.kind not in {"width", "kv_heads"} or size == group.full:
            continue
        for matrix in group.matrices:
            if matrix.name not in left:
                continue
            module, gone = left[matrix.name], matrix.features - matrix.features * size // group.full
            if matrix.axis == "in":
                left[matrix.name] = replace(module, cols=module.cols - gone)
            else:
                left[matrix.name] = replace(module, rows=module.rows - gone)
    for group, size in chosen:
        if group.kind != "rank" or size == group.full:
            continue
        for matrix in group.matrices:
            if matrix.name not in left:
                continue
            module = left[matrix.name]
            rows = matrix.rows * module.rows // dense[matrix.name].rows
            block = Block(rows=rows, rank=size)
            left[matrix.name] = replace(module, blocks=(*module.blocks, block))
    return tuple(module for module in left.values() if module.rows and module.cols)


def expert_counts(modules: Iterable[Module], frame: Frame) -> dict[str, tuple[int, int]]:
    """(experts, experts) by the name of their container; empty without a mixture of experts."""
    held: dict[str, set[str]] = {}
    for module in modules:
        if frame.experts_per_token and (container := module.experts) is not None:
            held.setdefault(container, set()).add(module.holder)
    return {name: (len(holders), len(holders)) for name, holders in held.items()}


def layer_parts(
    modules: Iterable[Module],
    frame: Frame,
    phase: Phase,
    *,
    experts: Mapping[str, tuple[int, int]],
    itemsize: int = 2,
    shards: int = 1,
) -> Parts:
    """Operators of decoder layers.

    Args:
        modules: linear layers of one or more decoder layers, at their sizes.
        frame: of the model.
        phase: what goes through.
        experts: (left, of how many) by the name of the experts' container; `expert_counts`.
        itemsize: bytes of an activation.
        shards: devices that share every layer; the operators are those of one of them.

    """
    parts: Parts = {}
    holders: dict[str, list[Module]] = {}
    for module in modules:
        holders.setdefault(module.holder, []).append(module)
    for holder, held in holders.items():
        container = held[0].experts or ""
        rows, times = phase.rows, 1.0
        if container in experts:
            rows, times = _hits(phase.rows, frame.experts_per_token, *experts[container])
        for module in held:
            parts[module.name] = [(op, times) for op in _products(module, rows, frame, shards)]
        roles = {module.role: module for module in held}
        if roles.keys() & _ATTENTION_IN and "o" in roles:
            parts[holder] = _attention(roles, frame, phase, itemsize, shards)
        elif "down" in roles:
            inner = -(-roles["down"].cols // shards)
            parts[holder] = [(_activation(rows * inner, roles), times)]
            if container not in experts:
                parts[holder] += _around(frame, phase.rows, itemsize)
            elif container not in parts:
                kept = experts[container][0]
                parts[container] = _routing(frame, phase.rows, kept, itemsize)
    return parts


def head_parts(frame: Frame, phase: Phase, *, itemsize: int = 2, shards: int = 1) -> Parts:
    """The final norm over all tokens, and the output layer over the last one of each sequence."""
    vocab = -(-frame.vocab // shards)
    product = Linear(m=phase.batch, n=vocab, k=frame.hidden)
    return {HEAD: [*_norms(1, phase.rows * frame.hidden, itemsize), (product, 1.0)]}


def frame_of(whole: Space) -> Frame:
    """The space's frame.

    Raises:
        SnapfitError: it has none, so its operators cannot be counted.

    """
    if whole.frame is None:
        raise SnapfitError(
            f"the space of {whole.model} does not say how many heads and layers there are, so "
            "latency cannot be predicted; describe the model again"
        )
    return whole.frame


def _products(module: Module, m: int, frame: Frame, shards: int) -> list[Operator]:
    """One product, or two for a factor pair; several blocks share the first one."""
    share_out = shards if module.role in _ATTENTION_IN | _MLP_IN else 1
    share_in = shards if module.role in {"o", "down"} else 1
    if module.role in {"k", "v"}:  # with fewer heads than devices each has a copy of one
        share_out = min(shards, max(1, module.rows // max(1, frame.head_dim)))
    rows, inputs = module.rows, -(-module.cols // share_in)
    if not module.blocks:
        return [Linear(m=m, n=-(-rows // share_out), k=inputs)]
    products: list[Operator] = [Linear(m=m, n=sum(b.rank for b in module.blocks), k=inputs)]
    products += [Linear(m=m, n=-(-b.rows // share_out), k=b.rank) for b in module.blocks]
    if dense := rows - sum(block.rows for block in module.blocks):
        products.append(Linear(m=m, n=-(-dense // share_out), k=inputs))
    if len(products) > 2:  # the blocks' outputs are put together
        products.append(Elementwise(elements=2 * m * -(-rows // share_out)))
    return products


def _attention(
    roles: Mapping[str, Module], frame: Frame, phase: Phase, itemsize: int, shards: int
) -> list[Counted]:
    """Attention proper, rotary embedding, the cache, and the norms and the sum around it."""
    if "q" in roles and "k" in roles:
        heads, kv_heads = (roles[role].rows // frame.head_dim for role in ("q", "k"))
    else:
        heads = roles["o"].cols // frame.head_dim
        kv_heads = heads * frame.kv_heads // frame.heads
    kv_heads = max(1, kv_heads // shards)
    heads = kv_heads * max(1, round(heads / shards / kv_heads))
    core = Attention(
        batch=phase.batch,
        query=phase.query,
        context=phase.tokens,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=frame.head_dim,
    )
    turned = phase.rows * frame.head_dim * (heads + kv_heads)
    # Times the cosine; half negated, put together, times the sine; the sum: for queries and keys.
    rotary = [
        (Elementwise(elements=passes * turned, ops=2), times)
        for passes, times in ((1, 1.0), (2, 3.0), (3, 1.0))
    ]
    # The cache grows by a copy: of keys and values, all that there were and the new ones.
    cached = phase.batch * phase.tokens * frame.head_dim * kv_heads
    cache = (Elementwise(elements=2 * cached), 2.0)
    return [(core, 1.0), *rotary, cache, *_around(frame, phase.rows, itemsize)]


def _activation(inner: int, roles: Mapping[str, Module]) -> Operator:
    """The activation, and the product with the gated half where there is one."""
    gated = bool(roles.keys() & {"gate", "gate_up"})
    return Elementwise(elements=(5 if gated else 2) * inner, ops=2 if gated else 1)


def _around(frame: Frame, rows: int, itemsize: int) -> list[Counted]:
    """Half a layer's norms, and the sum with the residual stream."""
    elements = rows * frame.hidden
    return [*_norms(frame.norms / 2, elements, itemsize), (Elementwise(elements=3 * elements), 1.0)]


def _norms(count: float, elements: int, itemsize: int) -> list[Counted]:
    """RMS norms: square, mean, scale and weigh, in float32, converted there and back."""
    # Elements of float32, counted in elements of the activations' type.
    wide = elements * 4 // itemsize
    kernels = [
        (Elementwise(elements=2 * wide), 2.0),  # square; scale
        (Elementwise(elements=wide), 1.0),  # mean
        (Elementwise(elements=2 * elements), 1.0),  # weigh
    ]
    if itemsize < 4:
        kernels.append((Elementwise(elements=elements + wide), 2.0))
    return [(kernel, count * times) for kernel, times in kernels]


def _hits(rows: int, per_token: int, kept: int, all_experts: int) -> tuple[int, float]:
    """(tokens of an expert that is hit, times that each of the `all_experts` is hit)."""
    per_token = min(per_token, kept)
    hit = kept * (1 - (1 - per_token / kept) ** rows)
    return max(1, math.ceil(rows * per_token / hit)), hit / all_experts


def _routing(frame: Frame, rows: int, kept: int, itemsize: int) -> list[Counted]:
    """The router, its softmax and choice, gathering and adding up, and what is around an MLP."""
    router = (Linear(m=rows, n=kept, k=frame.hidden), 1.0)
    choice = (Elementwise(elements=2 * rows * kept), 3.0)
    moved = rows * min(frame.experts_per_token, kept) * frame.hidden
    gathering = (Elementwise(elements=7 * moved, ops=3), 1.0)
    return [router, choice, gathering, *_around(frame, rows, itemsize)]
