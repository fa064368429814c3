"""Diagnosis of checkpoints that other tools made, from headers with the names that they store."""

from __future__ import annotations

from pathlib import Path

import pytest
from headers import llama, write

from snapfit.core.errors import UsageError
from snapfit.hardware import resolve_target
from snapfit.pipeline.diagnose import diagnose

TARGET = "a100_sxm"  # wants multiples of 16, as all dense sizes of the model here are
Q, K, DOWN = "self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"


@pytest.mark.parametrize(
    ("tool", "replaced", "misfits", "labels"),
    [
        (
            "ASVD",
            {
                Q: {f"{Q}.BLinear.weight": (23, 64), f"{Q}.ALinear.weight": (64, 23)},
                DOWN: {f"{DOWN}.BLinear.weight": (48, 160), f"{DOWN}.ALinear.weight": (64, 48)},
            },
            {(Q, "rank", 23, 16)},
            {f"{Q}.BLinear", f"{Q}.ALinear"},
        ),
        (
            "SVD-LLM",
            {
                Q: {"self_attn.q_v_proj.weight": (31, 64), "self_attn.q_u_proj.weight": (64, 31)},
                DOWN: {"mlp.down_v_proj.weight": (42, 160), "mlp.down_u_proj.weight": (64, 42)},
            },
            {(Q, "rank", 31, 32), (DOWN, "rank", 42, 48)},
            {f"{Q}.u", f"{Q}.v", f"{DOWN}.u", f"{DOWN}.v"},
        ),
        (
            "PaLU",
            {
                K: {
                    f"{K}.VT.weight": (29, 64),
                    f"{K}.U.0.weight": (16, 13),
                    f"{K}.U.1.weight": (16, 16),
                }
            },
            {(K, "rank", 13, 16)},
            {f"{K}.VT", f"{K}.U.0"},
        ),
        (
            "",  # pruned: narrower, nothing factored
            {
                "mlp.gate_proj": {"mlp.gate_proj.weight": (131, 64)},
                "mlp.up_proj": {"mlp.up_proj.weight": (131, 64)},
                DOWN: {f"{DOWN}.weight": (64, 131)},
            },
            {
                ("mlp.gate_proj", "rows", 131, 128),
                ("mlp.up_proj", "rows", 131, 128),
                (DOWN, "columns", 131, 128),
            },
            {"mlp.gate_proj", "mlp.up_proj", DOWN},
        ),
    ],
)
def test_checkpoints_of_other_tools(
    tmp_path: Path,
    tool: str,
    replaced: dict[str, dict[str, tuple[int, ...]]],
    misfits: set[tuple[str, str, int, int]],
    labels: set[str],
) -> None:
    """The configuration is always that of the dense model."""
    found = diagnose(write(tmp_path / "m", llama(replaced)), TARGET)
    assert found.compressor == tool
    assert {(m.name, m.what, m.size, m.good) for m in found.misfits} == {
        (f"model.layers.{layer}.{name}", what, size, good)
        for layer in range(2)
        for name, what, size, good in misfits
    }
    slow = [line for line in found.lines if not line.suited]
    assert {line.label for line in slow} == labels
    assert all(line.layers == (0, 1) and line.causes for line in slow)
    assert {change.label for change in found.changes if change.reason == "alignment"} <= {
        name for name, *_ in misfits
    } | {"mlp"}


def test_rules_of_the_stack_are_diagnosed_too(tmp_path: Path) -> None:
    """64 and 160 are multiples of 16, as a GPU likes; block FP8 takes N 128 and K 128."""
    folder = write(tmp_path / "m", llama())
    assert diagnose(folder, TARGET).misfits == ()
    found = diagnose(folder, "h100_sxm,quant=block-fp8")
    assert len(found.misaligned) == 14
    assert {m.good % 128 for m in found.misfits} == {0}
    assert any("block FP8 scales blocks of N 128 by K 128" in rule for rule in found.rules)


def test_a_target_that_cannot_serve_the_model_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", llama())  # 4 query heads, 2 key-value heads
    assert diagnose(folder, "h100_sxm,tp=2").matrices == 14
    with pytest.raises(UsageError, match=r"4 query and 2 key-value heads, refused by: tp=3 gives"):
        diagnose(folder, "h100_sxm,tp=3")


def test_heads_that_are_left_are_what_counts(tmp_path: Path) -> None:
    """The configuration still says 4 query heads; 3 of them are left, with one key-value head."""
    pruned = {
        Q: {f"{Q}.weight": (48, 64)},
        K: {f"{K}.weight": (16, 64)},
        "self_attn.v_proj": {"self_attn.v_proj.weight": (16, 64)},
        "self_attn.o_proj": {"self_attn.o_proj.weight": (64, 48)},
    }
    folder = write(tmp_path / "m", llama(pruned))
    assert diagnose(folder, "h100_sxm,tp=3").matrices == 14
    with pytest.raises(UsageError, match="3 query and 1 key-value heads, refused by: tp=2"):
        diagnose(folder, "h100_sxm,tp=2")


def test_what_the_times_are_of_is_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", llama())
    notes = " ".join(diagnose(folder, "h100_sxm,tp=2,quant=machete").notes)
    assert "a matrix that breaks this rule is refused: Machete takes N 128" in notes
    if resolve_target("h100_sxm").timer is not None:
        assert "not of the kernels of quant=machete" in notes
        assert "times are of one of 2 devices" in notes
