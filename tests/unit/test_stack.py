"""What a serving stack asks of sizes: every row of the table, alone and together."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from helpers import depth_group, head_group, projection, stepped, width

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.errors import UsageError
from snapfit.core.shares import ShareRule
from snapfit.core.space import Group, Matrix
from snapfit.core.stack import ENGINES, FORMATS, QUANTS, Stack
from snapfit.hardware.registry import parse_stack

# Of a model whose own dimensions are multiples of 256: (rank step, width step).
STEPS = {
    "marlin": (128, 128),
    "machete": (128, 128),
    "cutlass-w4a8": (128, 128),
    "fp8": (16, 16),
    "block-fp8": (128, 128),
    "deepgemm": (128, 128),
    "nvfp4": (32, 32),
    "gguf": (32, 32),
    "gguf-k": (256, 256),
}


def test_every_row_is_tested() -> None:
    assert STEPS.keys() == TABLE.keys() == QUANTS.keys()


@pytest.mark.parametrize(("quant", "steps"), STEPS.items())
def test_row_of_the_table(quant: str, steps: tuple[int, int]) -> None:
    rules = Stack(quant=quant).rules
    rank = projection(1024, 2048)
    assert legal_sizes(rank, rules).tolist() == stepped(steps[0], 682, 1024)
    mlp = width(1024, 512)
    assert legal_sizes(mlp, rules).tolist() == stepped(steps[1], 1023, 1024)
    assert all("vLLM 0.32" in rule.source or "llama.cpp" in rule.source for rule in rules)


# The table as it is in serving.md: (multiple of N, multiple of K), groups a user may name.
TABLE = {
    "marlin": (64, 128, {"32", "64", "128", "column"}),
    "machete": (128, 64, {"64", "128", "column"}),
    "cutlass-w4a8": (128, 128, {"128"}),
    "fp8": (16, 16, set()),
    "block-fp8": (128, 128, set()),
    "deepgemm": (64, 128, set()),
    "nvfp4": (32, 32, set()),
    "gguf": (1, 32, set()),
    "gguf-k": (1, 256, set()),
}


def side_group(axis: Literal["in", "out"]) -> Group:
    """A width that only one matrix has, the other side of which is 1536."""
    sizes = {"rows": 1536, "cols": 1536, {"out": "rows", "in": "cols"}[axis]: 1024}
    matrix = Matrix(name="m", axis=axis, **sizes)
    return Group(name="g", kind="width", matrices=(matrix,), full=1024, role="mlp", layer=0)


@pytest.mark.parametrize("shares", [1, 2])
@pytest.mark.parametrize("quant", QUANTS)
def test_each_side_of_every_row(quant: str, shares: int) -> None:
    n, k, groups = TABLE[quant]
    assert set(QUANTS[quant].groups) == groups
    # Without groups of K, or with the smallest one, only the tile itself binds.
    group = "column" if "column" in groups else None
    tiles = next(rule for rule in Stack(quant=quant, group=group, tp=shares).rules if rule.tiles)
    sizes = np.arange(1, 1025)
    for axis, multiple in (("out", n), ("in", k)):
        allowed = sizes[tiles.allows(side_group(axis), sizes)]
        # Marlin takes N 64 x K 128 or N 128 x K 64; 1536 is a multiple of both.
        least = min(n, k) if quant == "marlin" else multiple
        assert allowed.tolist() == list(range(least * shares, 1025, least * shares))


@pytest.mark.parametrize(
    ("quant", "group"),
    [(quant, group) for quant, row in TABLE.items() for group in sorted(row[2] - {"column"})],
)
def test_a_group_is_a_multiple_of_k(quant: str, group: str) -> None:
    (rule,) = (r for r in Stack(quant=quant, group=group).rules if r.axis == "in")
    assert rule.multiple == int(group)
    size = int(group)
    assert rule.allows(side_group("in"), np.array([size, size - 1])).tolist() == [True, False]
    assert rule.allows(side_group("out"), np.array([size - 1])).all()
    assert f"groups of {group}" in str(rule.refuses(projection(1536, 3 * size + 1)))


@pytest.mark.parametrize("quant", sorted(QUANTS.keys() - {"gguf-k"}))  # K-quants take blocks of 256
def test_multiples_of_128_satisfy_every_row(quant: str) -> None:
    sizes = np.arange(128, 1025, 128)
    for rule in Stack(quant=quant).rules:
        for group in (projection(2048, 2048), width(1024, 512)):
            assert rule.allows(group, sizes).all()
            assert rule.refuses(group) is None
    for rule in Stack(quant=quant, tp=2).rules:
        assert rule.allows(width(1024, 512), np.arange(256, 1025, 256)).all()


@pytest.mark.parametrize(
    ("hidden", "step"),
    [
        (512, 64),  # K 128 of the first factor, N 128 of the second: 64 is enough
        (192, 128),  # K 64 of the first asks N 128 of it
    ],
)
@pytest.mark.parametrize("group", ["64", "32", "column"])
def test_marlin_takes_either_tile(hidden: int, step: int, group: str) -> None:
    rules = Stack(quant="marlin", group=group).rules
    assert legal_sizes(width(1024, hidden), rules).tolist() == stepped(step, 1023, 1024)
    square = projection(hidden * 4, hidden)
    asked = step if hidden == 192 else 64
    assert legal_sizes(square, rules).tolist() == stepped(asked, square.break_even, hidden)


def test_marlin_pads_tiles_but_refuses_a_split_group() -> None:
    odd = projection(700, 700)
    tiles, group = Stack(quant="marlin").rules
    assert tiles.refuses(odd) is None
    assert "groups of 128" in str(group.refuses(odd))
    assert len(Stack(quant="marlin", group="column").rules) == 1
    # Neither tile fits 700, so the easier one is asked for: it is padded anyway.
    assert tiles.allows(odd, np.array([64, 65])).tolist() == [True, False]


@pytest.mark.parametrize("quant", ["machete", "cutlass-w4a8", "block-fp8", "deepgemm"])
def test_refused_matrix_is_named(quant: str) -> None:
    small = width(96, 512)
    with pytest.raises(UsageError, match=r"l.mlp.gate_proj has N .* and K .*, refused by: "):
        legal_sizes(small, Stack(quant=quant).rules)


@pytest.mark.parametrize("quant", ["fp8", "nvfp4", "gguf", "gguf-k"])
def test_padded_or_stored_otherwise_is_not_refused(quant: str) -> None:
    assert legal_sizes(width(1000, 500), Stack(quant=quant).rules)[-1] == 1000


def test_machete_binds_each_side_its_own_way() -> None:
    (rule,) = (r for r in Stack(quant="machete", group="column").rules)
    out_only = Group(
        name="up",
        kind="width",
        matrices=(Matrix(name="up", axis="out", rows=1024, cols=64),),
        full=1024,
        role="mlp",
        layer=0,
    )
    in_only = Group(
        name="down",
        kind="width",
        matrices=(Matrix(name="down", axis="in", rows=128, cols=1024),),
        full=1024,
        role="mlp",
        layer=0,
    )
    assert legal_sizes(out_only, (rule,)).tolist() == stepped(128, 1023, 1024)
    assert legal_sizes(in_only, (rule,)).tolist() == stepped(64, 1023, 1024)


def test_rules_that_leave_nothing_are_named() -> None:
    rules = (*Stack(quant="machete", group="column").rules,)
    forty = AlignRule(axis="rank", multiple=40, source="--align 40")
    with pytest.raises(UsageError, match=r"no size up to 511 .* 128 \(Machete.* 40 \(--align 40\)"):
        legal_sizes(projection(1024, 1024), (*rules, forty))


def test_shape_of_a_rule_that_binds_nothing() -> None:
    rules = Stack(tp=2, quant="marlin").rules
    assert legal_sizes(depth_group(), rules).tolist() == [1, 2, 3]


def test_step_is_always_allowed() -> None:
    groups = (projection(2048, 1024), width(2048, 512), head_group(32, 32, 64, 512))
    for quant in QUANTS:
        for rule in Stack(tp=2, quant=quant).rules:
            assert isinstance(rule, ShareRule)
            for group in groups:
                step = rule.step(group)
                assert rule.allows(group, np.arange(step, 4 * step, step)).all(), (quant, group)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp=0", "tensor parallel takes from 1"),
        ("tp=two", "a number of devices"),
        ("tp=2,tp=4", "gives tp twice"),
        ("speed=2", "unknown part of a target 'speed'; choose from: tp, quant"),
        ("quant", "'quant' is no KEY=VALUE"),
        ("quant=", "'quant=' is no KEY=VALUE"),
        ("quant=marlim", "did you mean 'marlin'"),
        ("engine=vlm", "did you mean 'vllm'"),
        ("format=gguff", "unknown format 'gguff'"),
        ("quant=marlin,group=48", "quant=marlin takes 128, 64, 32, column"),
        ("quant=fp8,group=128", "quant=fp8 has none"),
        ("quant=machete,engine=llama.cpp", "no kernels for quant=machete; vllm have"),
        ("engine=llama.cpp,format=factored", "does not load format=factored"),
    ],
)
def test_wrong_stacks(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_stack(text.split(","))


def test_stack_in_words() -> None:
    stack = parse_stack(["tp=2", " quant=marlin", "engine=vllm", "format=stock"])
    assert stack == Stack(tp=2, quant="marlin", engine="vllm", format="stock")
    assert str(stack) == ",tp=2,quant=marlin,engine=vllm,format=stock"
    assert str(Stack()) == ""


@pytest.mark.parametrize(
    ("engine", "holds_ranks"),
    [("vllm", True), ("transformers", True), ("tensorrt-llm", False), ("llama.cpp", False)],
)
def test_formats_of_engines(engine: str, holds_ranks: bool) -> None:
    formats = Stack(engine=engine).formats
    assert ("factored" in formats) == holds_ranks
    assert {"stock", "folded"} <= set(formats) <= set(FORMATS)
    assert set(ENGINES) == {"vllm", "transformers", "tensorrt-llm", "llama.cpp"}


def test_quantised_weights_have_no_place_in_a_factored_checkpoint() -> None:
    assert "factored" not in Stack(quant="marlin", engine="vllm").formats
    assert Stack(quant="gguf").formats == ("decilm", "stock", "folded")
    with pytest.raises(UsageError, match=r"quant=marlin cannot be in format=factored.*standalone"):
        Stack(quant="marlin").check_format("factored")
    with pytest.raises(UsageError, match=r"engine=llama\.cpp does not load format=standalone"):
        Stack(quant="gguf", engine="llama.cpp").check_format("standalone")
    Stack(engine="vllm").check_format("factored")
