"""The nearest sizes that suit a target, and what of a checkpoint is said to break its rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from headers import CONFIG, write

from snapfit.core.candidates import AlignRule
from snapfit.core.diagnosis import Diagnosis
from snapfit.core.findings import diagnosed
from snapfit.core.forward import Block, Module
from snapfit.core.progress import Silent
from snapfit.core.space import Frame
from snapfit.core.stack import Stack
from snapfit.core.suited import Suited
from snapfit.core.target import Target
from snapfit.core.workload import Workload
from snapfit.models.footprint import read_footprint

RULES = tuple(AlignRule(axis=axis, multiple=16, source="test") for axis in ("in", "out", "rank"))
HOPPER = Target(name="gpu", device="gpu", dtype="float16", rules=RULES, capability=90)


@pytest.mark.parametrize(("rank", "good"), [(1107, 1104), (8, 16), (1112, 1104), (3, 16), (32, 32)])
def test_nearest_suited_rank(rank: int, good: int) -> None:
    block = Block(rows=4096, rank=rank)
    module = Module(name="x.q_proj", role="q", layer=0, rows=4096, cols=4096, blocks=(block,))
    assert Suited(rules=RULES, gpu=True).rank(module, block) == good


def test_rules_that_no_size_can_meet_change_nothing() -> None:
    """As a stranger's profile may have them: nobody looks for the common multiple."""
    rules = tuple(AlignRule(axis="rank", multiple=n, source="odd") for n in (2**24 - 3, 2**24 - 5))
    block = Block(rows=64, rank=33)
    module = Module(name="x.q_proj", role="q", layer=0, rows=64, cols=64, blocks=(block,))
    frame = Frame(hidden=64, vocab=96, layers=1, heads=4, kv_heads=4, head_dim=16)
    suited = Suited(rules=rules, gpu=True)
    assert suited.rank(module, block) == 33
    assert suited.head_dim((module,), frame) == 16


def test_blocks_of_padded_rows_are_all_of_them() -> None:
    """Or the dense rows that are left would be one more product than there is."""
    blocks = tuple(Block(rows=rows, rank=16) for rows in (33, 33, 34))
    module = Module(name="x.mix", role="other", layer=0, rows=100, cols=64, blocks=blocks)
    frame = Frame(hidden=64, vocab=96, layers=1, heads=4, kv_heads=2, head_dim=16)
    ((suited,), _) = Suited(rules=RULES, gpu=True).modules([module], frame)
    assert suited.rows == 112
    assert sum(block.rows for block in suited.blocks) == 112
    assert [block.rows for block in suited.blocks] == pytest.approx([37, 37, 38], abs=1)


def test_of_two_equally_near_head_sizes_the_smaller_is_taken() -> None:
    frame = Frame(hidden=64, vocab=96, layers=1, heads=4, kv_heads=2, head_dim=12)
    modules = tuple(
        Module(name=f"x.{role}_proj", role=role, layer=0, rows=rows, cols=cols)
        for role, rows, cols in (("q", 48, 64), ("k", 24, 64), ("v", 24, 64), ("o", 64, 48))
    )
    assert Suited(rules=RULES, gpu=True).head_dim(modules, frame) == 8


@pytest.mark.parametrize(("width", "tried"), [(1000, [832, 896, 960]), (60, [48])])
def test_cliffs_are_looked_for_at_whole_tiles(width: int, tried: list[int]) -> None:
    module = Module(name="x.up_proj", role="up", layer=0, rows=width, cols=64)
    assert Suited(rules=RULES, gpu=True).smaller(module, 0.8) == tried


def test_widths_follow_tensor_parallelism() -> None:
    shared = HOPPER.with_stack(Stack(tp=4))
    module = Module(name="x.up_proj", role="up", layer=0, rows=1000, cols=64)
    assert Suited(rules=shared.rules, gpu=True).width(module) == 1024
    assert Suited(rules=RULES, gpu=True).width(module) == 992


def stacked(folder: Path, hidden: int, **stack: Any) -> Diagnosis:
    """A layer of 8 query heads and one of keys, each of 64, on a Hopper with a stack."""
    shapes = {
        "self_attn.q_proj": (512, hidden),
        "self_attn.k_proj": (64, hidden),
        "self_attn.v_proj": (64, hidden),
        "self_attn.o_proj": (hidden, 512),
        "mlp.gate_proj": (1536, hidden),
        "mlp.up_proj": (1536, hidden),
        "mlp.down_proj": (hidden, 1536),
    }
    tensors = {"model.embed_tokens.weight": (1024, hidden), "lm_head.weight": (1024, hidden)}
    tensors |= {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64}
    footprint = read_footprint(write(folder, tensors, CONFIG | heads | {"hidden_size": hidden}))
    return diagnosed(
        footprint, HOPPER.with_stack(Stack(**stack)), Workload.parse("prefill:1x8"), Silent()
    )


@pytest.mark.parametrize(
    "stack",
    [
        {"quant": "deepgemm"},  # N 64 and K 128
        {"quant": "deepgemm", "tp": 4},  # every device has the one head of keys
        {"quant": "marlin"},  # the same, or N 128 and K 64
        {"quant": "gguf-k", "engine": "llama.cpp"},  # nothing of N
    ],
    ids=str,
)
def test_what_a_kernel_wants_of_k_is_not_asked_of_n(tmp_path: Path, stack: dict[str, Any]) -> None:
    """Keys and values have N 64; a multiple of 128 or 256 is wanted of K alone."""
    assert stacked(tmp_path / "m", 512, **stack).misfits == ()


def test_only_the_side_that_breaks_a_rule_is_named(tmp_path: Path) -> None:
    """A residual stream of 576 = 9 x 64 suits N of o and down, and no K."""
    found = stacked(tmp_path / "m", 576, quant="deepgemm")
    assert {(m.what, m.size, m.good) for m in found.misfits} == {("columns", 576, 640)}
    names = {name.rpartition(".")[2] for name in found.misaligned}
    assert names == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert any("is refused: DeepGEMM FP8" in note for note in found.notes)
