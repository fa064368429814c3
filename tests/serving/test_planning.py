"""What two workers cannot share is refused, or never chosen, when the plan is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import build

from snapfit.cli.app import run


def plan(folder: Path, target: str, *options: str) -> tuple[int, Path]:
    model = folder / "model"
    if not model.exists():
        build("llama", model, intermediate_size=96)
    output = folder / "plan.json"
    settings = ["--method", "llm-pruner", "--set", "importance=l2", "--ratio", "0.3"]
    where = ["--target", target, "--work", str(folder / "work"), "--context", "64"]
    return run(["plan", str(model), "-o", str(output), *settings, *where, *options]), output


def test_widths_and_heads_are_shared_equally(tmp_path: Path) -> None:
    code, output = plan(tmp_path, "a100_pcie,tp=2")
    assert code == 0
    sizes = json.loads(output.read_text())["sizes"]
    widths = [size for name, size in sizes.items() if name.endswith("mlp")]
    assert len(widths) >= 3
    assert min(widths) < 96
    assert all(width % 2 == 0 for width in widths)


def test_heads_that_the_workers_cannot_share_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = plan(tmp_path, "a100_pcie,tp=3")
    assert code == 2
    assert "4 query and 2 key-value heads, refused by: tp=3" in capsys.readouterr().err
    assert not output.exists()


def test_quantised_weights_are_refused_in_a_factored_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = plan(tmp_path, "h100_sxm,quant=fp8")
    assert code == 2
    assert "quant=fp8 cannot be in format=factored" in capsys.readouterr().err
    assert not output.exists()
    code, output = plan(tmp_path, "h100_sxm,quant=fp8", "--format", "standalone")
    assert code == 0
    sizes = json.loads(output.read_text())["sizes"]
    assert all(size % 16 == 0 for name, size in sizes.items() if name.endswith("mlp"))
