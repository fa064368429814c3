"""The operators of a forward pass, counted by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from timers import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, VOCAB, WIDTH, key_blocks, llama, whole_llama

from snapfit.core.errors import SnapfitError
from snapfit.core.forward import (
    HEAD,
    Module,
    dense_modules,
    expert_counts,
    frame_of,
    head_parts,
    layer_parts,
    resized,
)
from snapfit.core.operators import Attention, Elementwise, Linear, Operator
from snapfit.core.space import Frame, Space
from snapfit.core.workload import Phase

PREFILL = Phase(kind="prefill", batch=2, tokens=16)
DECODE = Phase(kind="decode", batch=2, tokens=16)
LAYER = "model.layers.0"


def parts_of(space: Space, sizes: dict[str, int], phase: Phase = PREFILL, **options: int):
    modules = resized(dense_modules(space), space.groups, sizes)
    return layer_parts(modules, frame_of(space), phase, experts={}, **options)


def count(parts: dict[str, list[tuple[Operator, float]]], kind: type) -> Counter[Operator]:
    found: Counter[Operator] = Counter()
    for counted in parts.values():
        for operator, times in counted:
            if isinstance(operator, kind):
                found[operator] += times
    return found


def test_a_dense_layer() -> None:
    parts = parts_of(llama(1), {})
    assert count(parts, Linear) == {
        Linear(m=32, n=HIDDEN, k=HIDDEN): 2,  # q and o
        Linear(m=32, n=KV_HEADS * HEAD_DIM, k=HIDDEN): 2,
        Linear(m=32, n=WIDTH, k=HIDDEN): 2,
        Linear(m=32, n=HIDDEN, k=WIDTH): 1,
    }
    shape = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    assert count(parts, Attention) == {Attention(batch=2, query=16, context=16, **shape): 1}


def test_decoding_reads_the_cache_with_one_query() -> None:
    parts = parts_of(llama(1), {}, DECODE)
    assert count(parts, Linear)[Linear(m=2, n=WIDTH, k=HIDDEN)] == 2
    (attention,) = count(parts, Attention)
    assert (attention.query, attention.context) == (1, 16)
    copied = Elementwise(elements=2 * 2 * 16 * KV_HEADS * HEAD_DIM)
    assert dict(parts[f"{LAYER}.self_attn"])[copied] == 2


def test_elementwise_traffic_of_a_layer() -> None:
    """Per element, in float32: norm 7, sum 3, rotary 10, cache 2 a key and value, SwiGLU 5."""
    tokens = 32
    expected = tokens * (
        2 * (7 + 3) * HIDDEN
        + 10 * (HEADS + KV_HEADS) * HEAD_DIM
        + 2 * 2 * KV_HEADS * HEAD_DIM
        + 5 * WIDTH
    )
    found = count(parts_of(llama(1), {}, itemsize=4), Elementwise)
    assert sum(op.elements * times for op, times in found.items()) == expected
    # Half precision: the norm's float32 passes count double, and it converts there and back.
    half = count(parts_of(llama(1), {}, itemsize=2), Elementwise)
    more = sum(op.elements * times for op, times in half.items()) - expected
    assert more == tokens * 2 * HIDDEN * (2 * (2 + 2 + 1) + 2 + 2 * 3 - 7)


def test_a_factor_pair_is_two_products() -> None:
    parts = parts_of(llama(1), {f"{LAYER}.mlp.up_proj": 48})
    assert [op for op, _ in parts[f"{LAYER}.mlp.up_proj"]] == [
        Linear(m=32, n=48, k=HIDDEN),
        Linear(m=32, n=WIDTH, k=48),
    ]


def test_row_blocks_share_their_first_product() -> None:
    blocks = key_blocks(32)
    modules = resized(dense_modules(llama(1)), blocks, {g.name: 8 for g in blocks[:2]})
    parts = layer_parts(modules, frame_of(llama(1)), PREFILL, experts={})
    assert [op for op, _ in parts[f"{LAYER}.self_attn.k_proj"]] == [
        Linear(m=32, n=16, k=HIDDEN),
        Linear(m=32, n=32, k=8),
        Linear(m=32, n=32, k=8),
        Linear(m=32, n=64, k=HIDDEN),  # the rows that stay dense
        Elementwise(elements=2 * 32 * 128),
    ]
    parts = layer_parts(modules, frame_of(llama(1)), PREFILL, experts={}, shards=2)
    together = parts[f"{LAYER}.self_attn.k_proj"][-1][0]
    assert together == Elementwise(elements=32 * 128), "each device has its share of the rows"


def test_narrowed_widths_and_fewer_heads() -> None:
    parts = parts_of(whole_llama(1), {f"{LAYER}.mlp": 96, f"{LAYER}.self_attn": 1})
    assert parts[f"{LAYER}.mlp.down_proj"] == [(Linear(m=32, n=HIDDEN, k=96), 1.0)]
    assert parts[f"{LAYER}.mlp.gate_proj"] == [(Linear(m=32, n=96, k=HIDDEN), 1.0)]
    assert parts[f"{LAYER}.self_attn.q_proj"] == [(Linear(m=32, n=64, k=HIDDEN), 1.0)]
    assert parts[f"{LAYER}.self_attn.o_proj"] == [(Linear(m=32, n=HIDDEN, k=64), 1.0)]
    (attention,) = count(parts, Attention)
    assert (attention.heads, attention.kv_heads) == (2, 1)


def test_width_and_rank_together_narrow_the_pair() -> None:
    sizes = {f"{LAYER}.mlp": 96, f"{LAYER}.mlp.up_proj": 40}
    parts = parts_of(whole_llama(1), sizes)
    assert [op for op, _ in parts[f"{LAYER}.mlp.up_proj"]] == [
        Linear(m=32, n=40, k=HIDDEN),
        Linear(m=32, n=96, k=40),
    ]


def test_a_part_of_size_zero_runs_nothing() -> None:
    parts = parts_of(whole_llama(1), {f"{LAYER}.mlp": 0})
    assert not [name for name in parts if "mlp" in name]
    assert not parts_of(whole_llama(1), {f"{LAYER}.mlp": 0, f"{LAYER}.self_attn": 0})


def test_tensor_parallel_cuts_columns_and_rows() -> None:
    parts = parts_of(llama(1), {f"{LAYER}.self_attn.o_proj": 24}, shards=2)
    assert parts[f"{LAYER}.mlp.gate_proj"] == [(Linear(m=32, n=WIDTH // 2, k=HIDDEN), 1.0)]
    assert parts[f"{LAYER}.mlp.down_proj"] == [(Linear(m=32, n=HIDDEN, k=WIDTH // 2), 1.0)]
    assert [op for op, _ in parts[f"{LAYER}.self_attn.o_proj"]] == [
        Linear(m=32, n=24, k=HEADS * HEAD_DIM // 2),
        Linear(m=32, n=HIDDEN, k=24),
    ]
    (attention,) = count(parts, Attention)
    assert (attention.heads, attention.kv_heads) == (HEADS // 2, KV_HEADS // 2)


def test_with_fewer_key_heads_than_devices_each_has_a_copy() -> None:
    parts = parts_of(llama(1), {}, shards=2 * KV_HEADS)
    for role in "kv":
        assert parts[f"{LAYER}.self_attn.{role}_proj"] == [
            (Linear(m=32, n=HEAD_DIM, k=HIDDEN), 1.0)
        ]
    (attention,) = count(parts, Attention)
    assert (attention.heads, attention.kv_heads) == (HEADS // (2 * KV_HEADS), 1)
    parts = parts_of(llama(1), {f"{LAYER}.self_attn.k_proj": 24}, shards=2 * KV_HEADS)
    assert parts[f"{LAYER}.self_attn.k_proj"][1] == (Linear(m=32, n=HEAD_DIM, k=24), 1.0)


def test_the_head_reads_the_last_token_of_each_sequence() -> None:
    parts = head_parts(frame_of(llama(1)), PREFILL)
    assert (Linear(m=2, n=VOCAB, k=HIDDEN), 1.0) in parts[HEAD]


def moe(experts: int = 8) -> tuple[list[Module], Frame]:
    modules = [
        Module(name=f"{LAYER}.mlp.experts.{index}.{role}", role=role, layer=0, rows=rows, cols=cols)
        for index in range(experts)
        for role, rows, cols in (("gate", 64, 32), ("up", 64, 32), ("down", 32, 64))
    ]
    frame = Frame(
        hidden=32, vocab=9, layers=1, heads=1, kv_heads=1, head_dim=32, experts_per_token=2
    )
    return modules, frame


def test_experts_share_the_tokens() -> None:
    modules, frame = moe()
    experts = expert_counts(modules, frame)
    assert experts == {f"{LAYER}.mlp.experts": (8, 8)}
    parts = layer_parts(modules, frame, replace(PREFILL, batch=64), experts=experts)
    gates = count({k: v for k, v in parts.items() if k.endswith("gate")}, Linear)
    # 1024 tokens reach every expert: 2 x 1024 / 8 tokens each.
    assert gates == {Linear(m=256, n=64, k=32): pytest.approx(8)}
    one = layer_parts(modules, frame, replace(DECODE, batch=1), experts=experts)
    gates = count({k: v for k, v in one.items() if k.endswith("gate")}, Linear)
    assert gates == {Linear(m=1, n=64, k=32): pytest.approx(2)}
    fewer = {f"{LAYER}.mlp.experts": (4, 8)}
    parts = layer_parts(modules, frame, replace(PREFILL, batch=64), experts=fewer)
    gates = count({k: v for k, v in parts.items() if k.endswith("gate")}, Linear)
    assert gates == {Linear(m=512, n=64, k=32): pytest.approx(4)}
    assert count(parts, Linear)[Linear(m=1024, n=4, k=32)] == 1  # the router
    # Of one expert that is left every token makes use once.
    last = {f"{LAYER}.mlp.experts": (1, 8)}
    parts = layer_parts(modules, frame, replace(PREFILL, batch=64), experts=last)
    gates = count({k: v for k, v in parts.items() if k.endswith("gate")}, Linear)
    assert gates == {Linear(m=1024, n=64, k=32): pytest.approx(1)}


def test_a_space_without_a_frame_says_so() -> None:
    with pytest.raises(SnapfitError, match="does not say how many heads"):
        frame_of(replace(llama(1), frame=None))
