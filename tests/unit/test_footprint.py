"""What a checkpoint computes, from its headers, whichever tool compressed it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from headers import CONFIG, llama, write

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.footprint import Footprint, Found
from snapfit.core.forward import Block
from snapfit.models.footprint import read_footprint

Q, DOWN = "self_attn.q_proj", "mlp.down_proj"


def the(footprint: Footprint, suffix: str, layer: int = 0) -> Found:
    return next(found for found in footprint.layers[layer] if found.suffix == suffix)


@pytest.mark.parametrize(
    ("tool", "tensors", "parts"),
    [
        ("snapfit", {f"{Q}.weight": (0,), f"{Q}.a.weight": (23, 64), f"{Q}.b.weight": (64, 23)},
         ("a", "b")),
        ("ASVD", {f"{Q}.BLinear.weight": (23, 64), f"{Q}.ALinear.weight": (64, 23)},
         ("BLinear", "ALinear")),
        ("ASVD", {f"{Q}.ALinear.weight": (23, 64), f"{Q}.BLinear.weight": (64, 23)},
         ("ALinear", "BLinear")),
        ("SVD-LLM", {"self_attn.q_v_proj.weight": (23, 64), "self_attn.q_u_proj.weight": (64, 23)},
         ("v", "u")),
    ],
)  # fmt: skip
def test_factor_pairs_of_every_tool(
    tmp_path: Path, tool: str, tensors: dict[str, tuple[int, ...]], parts: tuple[str, ...]
) -> None:
    footprint = read_footprint(write(tmp_path / "m", llama({Q: tensors})))
    found = the(footprint, Q)
    assert footprint.compressor == tool
    assert (found.module.rows, found.module.cols, found.module.role) == (64, 64, "q")
    assert found.module.blocks == (Block(rows=64, rank=23),)
    assert found.parts == parts
    # Everything else stayed as it was, and attention is still understood.
    assert the(footprint, DOWN).module.blocks == ()
    assert footprint.head_dims == {0: 16, 1: 16}


@pytest.mark.parametrize("listed", ["U", "U_list"])
def test_palu_has_one_block_a_group_of_heads(tmp_path: Path, listed: str) -> None:
    k = "self_attn.k_proj"
    tensors = {
        f"{k}.VT.weight": (20, 64),
        f"{k}.{listed}.0.weight": (16, 13),
        f"{k}.{listed}.1.weight": (16, 7),
    }
    footprint = read_footprint(write(tmp_path / "m", llama({k: tensors})))
    found = the(footprint, k)
    assert footprint.compressor == "PaLU"
    assert found.module.blocks == (Block(rows=16, rank=13), Block(rows=16, rank=7))
    assert found.module.rows == 32
    assert found.parts == ("VT", f"{listed}.0", f"{listed}.1")
    assert found.matrices == 2


def test_dense_blocks_of_a_fused_projection(tmp_path: Path) -> None:
    qkv = "self_attn.qkv_proj"
    tensors = llama()
    for layer in range(2):
        for name in ("q", "k", "v"):
            del tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
        prefix = f"model.layers.{layer}.{qkv}"
        tensors |= {
            f"{prefix}.a.weight": (21, 64),
            f"{prefix}.b.0.weight": (64, 64),
            f"{prefix}.b.1.weight": (32, 8),
            f"{prefix}.b.2.weight": (32, 13),
        }
    footprint = read_footprint(write(tmp_path / "m", tensors))
    found = the(footprint, qkv)
    assert found.module.blocks == (Block(rows=32, rank=8), Block(rows=32, rank=13))
    assert found.module.rows == 128  # 64 of them dense
    assert found.parts == ("a", "b.1", "b.2", "b.0")
    assert footprint.head_dims[0] == 16


def test_pruned_layers_differ_from_the_configuration(tmp_path: Path) -> None:
    tensors = llama()
    tensors |= {
        "model.layers.1.mlp.gate_proj.weight": (131, 64),
        "model.layers.1.mlp.up_proj.weight": (131, 64),
        "model.layers.1.mlp.down_proj.weight": (64, 131),
        # 4 query and 2 key-value heads of 11 features
        "model.layers.1.self_attn.q_proj.weight": (44, 64),
        "model.layers.1.self_attn.k_proj.weight": (22, 64),
        "model.layers.1.self_attn.v_proj.weight": (22, 64),
        "model.layers.1.self_attn.o_proj.weight": (64, 44),
    }
    footprint = read_footprint(write(tmp_path / "m", tensors))
    assert the(footprint, "mlp.gate_proj", 0).module.rows == 160
    assert the(footprint, "mlp.gate_proj", 1).module.rows == 131
    assert footprint.head_dims == {0: 16, 1: 11}
    # 14 matrices: all of layer 0 are aligned to 8, and none of layer 1.
    assert footprint.alignment(8) == pytest.approx(7 / 14)


def test_fewer_heads_of_the_configured_size(tmp_path: Path) -> None:
    tensors = llama()
    tensors |= {
        "model.layers.0.self_attn.q_proj.weight": (32, 64),
        "model.layers.0.self_attn.k_proj.weight": (16, 64),
    }
    assert read_footprint(write(tmp_path / "m", tensors)).head_dims[0] == 16


def test_unknown_attention_is_told_and_left_out(tmp_path: Path) -> None:
    tensors = llama() | {"model.layers.1.self_attn.q_proj.weight": (61, 64)}
    footprint = read_footprint(write(tmp_path / "m", tensors))
    assert footprint.head_dims == {0: 16}
    assert any("1 layers is not understood" in note for note in footprint.notes)
    assert the(footprint, Q, 1).module.role == "other"  # still a product, of no attention


@pytest.mark.parametrize("said", [{"num_experts_per_tok": 2}, {"top_k": 50}])
def test_experts_stacked_and_one_by_one(said: dict[str, int], tmp_path: Path) -> None:
    """'top_k' is a setting of sampling, which old configurations hold too; two is the default."""
    config = CONFIG | {"num_local_experts": 3} | said
    tensors = llama()
    for layer in range(2):
        for name in ("gate_proj", "up_proj", "down_proj"):
            del tensors[f"model.layers.{layer}.mlp.{name}.weight"]
        prefix = f"model.layers.{layer}.mlp."
        tensors[f"{prefix}gate.weight"] = (3, 64)
        if layer:
            tensors |= {
                f"{prefix}experts.gate_up_proj": (3, 48, 64),
                f"{prefix}experts.down_proj": (3, 64, 24),
            }
        else:
            for i in range(3):
                expert = f"{prefix}experts.{i}."
                tensors |= {
                    f"{expert}w1.weight": (24, 64),
                    f"{expert}w3.weight": (24, 64),
                    f"{expert}w2.weight": (64, 24),
                }
    footprint = read_footprint(write(tmp_path / "m", tensors, config))
    assert footprint.frame.experts_per_token == 2
    roles = [[found.module.role for found in footprint.layers[layer]] for layer in range(2)]
    assert roles[0].count("gate") == roles[0].count("up") == roles[0].count("down") == 3
    assert roles[1].count("gate_up") == roles[1].count("down") == 3
    assert "router" not in roles[0] + roles[1]
    assert {m.module.experts for m in footprint.layers[1] if "experts" in m.suffix} == {
        "model.layers.1.mlp.experts"
    }


def test_the_embedding_matrix_is_the_output_layer_where_none_is_stored(tmp_path: Path) -> None:
    tensors = llama()
    del tensors["lm_head.weight"]
    footprint = read_footprint(write(tmp_path / "m", tensors))
    assert (footprint.frame.tied, footprint.frame.vocab) == (True, 96)


def test_gpt2_stores_weights_the_other_way(tmp_path: Path) -> None:
    tensors = {
        "wte.weight": (96, 64),
        "h.0.attn.c_attn.weight": (64, 192),
        "h.0.attn.c_proj.weight": (64, 64),
        "h.0.mlp.c_fc.weight": (64, 250),
        "h.0.mlp.c_proj.weight": (250, 64),
    }
    config = {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "vocab_size": 96}
    footprint = read_footprint(write(tmp_path / "m", tensors, config))
    roles = {f.suffix: (f.module.role, f.module.rows, f.module.cols) for f in footprint.layers[0]}
    assert roles == {
        "attn.c_attn": ("qkv", 192, 64),
        "attn.c_proj": ("o", 64, 64),
        "mlp.c_fc": ("up", 250, 64),
        "mlp.c_proj": ("down", 64, 250),
    }


def test_factors_that_do_not_multiply_are_refused(tmp_path: Path) -> None:
    tensors = llama({Q: {f"{Q}.VT.weight": (20, 64), f"{Q}.U.0.weight": (64, 19)}})
    with pytest.raises(CorruptFile, match=r"layers\.0.*20 x 64 and 64 x 19 do not multiply"):
        read_footprint(write(tmp_path / "m", tensors))


def test_packed_integers_are_refused(tmp_path: Path) -> None:
    tensors = llama({Q: {f"{Q}.qweight": (8, 64)}})
    with pytest.raises(SnapfitError, match="packed integers"):
        read_footprint(write(tmp_path / "m", tensors, dtype="I32"))


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model folder"):
        read_footprint(tmp_path / "none")
    with pytest.raises(SnapfitError, match="no decoder layers"):
        read_footprint(write(tmp_path / "m", {"a.weight": (4, 4)}))


def test_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from snapfit.models.footprint import read_footprint; "
        "f = read_footprint('embedded'); print(len(f.layers), f.alignment(16), "
        "sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "8 1.0 []"
