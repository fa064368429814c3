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
from snapfit.core.errors import Infeasible
from snapfit.methods.base import DepthMethod, RankMethod, WidthMethod
from snapfit.methods.registry import load_method, method_names
from snapfit.pipeline import Options, compress

TINY = {"calib_tokens": 384, "context": 32, "align": 4}
PROTOCOLS = {"rank": RankMethod, "width": WidthMethod, "depth": DepthMethod}
SETTINGS = {"laco": {"merge": "2", "threshold": "-1"}, "selection": {"layers": "1"}}


@pytest.mark.parametrize("name", method_names())
def test_a_method_satisfies_the_protocol_and_is_documented(name: str) -> None:
    method = load_method(name)
    assert isinstance(method, PROTOCOLS[method.kind])
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
    ratio = None if name == "selection" else 0.2
    settings = SETTINGS.get(name, {})
    options = Options(method=name, ratio=ratio, settings=settings, work=work, **TINY)
    if (name, architecture) == ("laco", "qwen3_moe"):
        # Its layers alternate between experts and a plain MLP: no two neighbours can be merged.
        with pytest.raises(Infeasible, match="removes at most 0 of 3"):
            compress(str(tiny(architecture)), tmp_path / "out", options)
        return
    report = compress(str(tiny(architecture)), tmp_path / "out", options)

    # Budgets count matrices: the bias that flap leaves behind comes on top.
    stored = load_file(tmp_path / "out" / "model.safetensors")
    bias = sum(t.numel() for key, t in stored.items() if key.endswith("bias"))
    bias = bias if name == "flap" else 0
    assert report["params"]["compressed"] <= report["params"]["budget"] + bias
    assert report["ratio"]["linear"] >= 0.2
    assert report["loss"]["predicted"] > 0
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    if load_method(name).kind != "depth":
        heads = ("self_attn", "attention")  # counted whole; everything else is aligned
        rest = {group: n for group, n in plan["sizes"].items() if not group.endswith(heads)}
        assert rest
        assert not {group: n for group, n in rest.items() if n % 4}

    model = load(tmp_path / "out")
    assert sum(p.numel() for p in model.parameters()) == report["params"]["compressed"]
    assert sum(t.numel() for t in stored.values()) == report["params"]["compressed"], "tied twice"
    ids_BT = sample_ids(2, 6)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        cached = model.generate(ids_BT, use_cache=True, **settings)
        recomputed = model.generate(ids_BT, use_cache=False, **settings)
    assert torch.equal(cached, recomputed)
