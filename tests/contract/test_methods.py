"""Every method on every architecture: order, plan, slice, save, load, generate with cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, sample_ids

from snapfit.checkpoint.load import load
from snapfit.methods.base import Method
from snapfit.methods.registry import load_method, method_names
from snapfit.pipeline import Options, compress

TINY = {"calib_tokens": 384, "context": 32, "align": 4}


@pytest.mark.parametrize("name", method_names())
def test_a_method_satisfies_the_protocol_and_is_documented(name: str) -> None:
    method = load_method(name)
    assert isinstance(method, Method)
    assert len((type(method).__doc__ or "").split()) > 10
    assert method.unit


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", method_names())
def test_end_to_end(
    name: str,
    architecture: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    work = tmp_path_factory.getbasetemp() / "methods-work"
    options = Options(method=name, ratio=0.2, work=work, **TINY)
    report = compress(str(tiny(architecture)), tmp_path / "out", options)

    assert report["params"]["compressed"] <= report["params"]["budget"]
    assert report["ratio"]["linear"] >= 0.2
    assert report["loss"]["predicted"] > 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert any(size % 4 == 0 for size in plan["sizes"].values())

    model = load(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == report["params"]["compressed"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) == report["params"]["compressed"], "tied twice"
    ids_BT = sample_ids(2, 6)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached = model.generate(ids_BT, use_cache=True, **settings)
        recomputed = model.generate(ids_BT, use_cache=False, **settings)
    assert torch.equal(cached, recomputed)
