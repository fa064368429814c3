"""Whole jobs of every kind of method into every format that can hold them."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import sample_ids
from transformers import AutoModelForCausalLM

from snapfit.checkpoint.load import load
from snapfit.core.errors import Infeasible, UsageError
from snapfit.pipeline import Options, apply, compress, plan

TINY = {"calib_tokens": 384, "context": 32, "align": 4}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

HELD = [
    ("minitron", {}, "stock"),
    ("minitron", {"parts": "mlp"}, "decilm"),
    ("llm-pruner", {"parts": "mlp"}, "standalone"),
    ("flap", {"parts": "mlp"}, "stock"),
    ("shortgpt", {}, "stock"),
    ("shortgpt", {"part": "mlp"}, "decilm"),
    ("reverse-order", {"part": "attention"}, "factored"),
    ("laco", {"merge": "2", "threshold": "-1"}, "stock"),
    ("kfac", {}, "folded"),
    ("kfac", {}, "standalone"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize(("method", "settings", "name"), HELD)
def test_a_job_writes_the_format_that_was_asked(
    method: str,
    settings: dict[str, str],
    name: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    work: Path,
) -> None:
    options = Options(method=method, settings=settings, ratio=0.2, format=name, work=work, **TINY)
    out = tmp_path / "out"
    report = compress(str(tiny("llama")), out, options)
    assert report["format"] == name
    trusted = {"trust_remote_code": True} if name == "decilm" else {}
    model = load(out, **trusted)
    if name in {"stock", "folded"}:
        plain = AutoModelForCausalLM.from_pretrained(out)
        ids_BT = sample_ids(2, 6)
        assert torch.equal(plain.generate(ids_BT, **GREEDY), model.generate(ids_BT, **GREEDY))
    if name == "folded":
        assert report["params"]["compressed"] == report["params"]["dense"]
        assert report["ratio"]["linear"] == 0, "folded factors make nothing smaller"
    else:
        assert report["ratio"]["linear"] > 0.1
        assert sum(p.numel() for p in model.parameters()) == report["params"]["compressed"]
    again = tmp_path / "again"
    remade = apply(out / "plan.json", again, Options(work=work))
    assert remade["params"] == report["params"]
    assert (again / "config.json").read_text() == (out / "config.json").read_text()


def test_stock_loads_and_saves_again_where_snapfit_is_not_installed(
    tiny: Callable[[str], Path], tmp_path: Path, work: Path
) -> None:
    folders = []
    for method, settings in (("minitron", {"parts": "mlp"}), ("shortgpt", {})):
        out = tmp_path / method
        asked = {"method": method, "settings": settings, "ratio": 0.2, "format": "stock"}
        compress(str(tiny("llama")), out, Options(work=work, **asked, **TINY))
        folders.append(out)
    code = """
import sys
sys.path += [sys.argv[1]]  # without the .pth files by which snapfit may be installed in place
sys.modules["snapfit"] = None
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 9)[None]
    kwargs = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    cached = model.generate(ids, use_cache=True, **kwargs)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **kwargs))
    model.save_pretrained(folder + "-again")
    again = AutoModelForCausalLM.from_pretrained(folder + "-again")
    assert torch.equal(again.generate(ids, **kwargs), cached)
    print(folder)
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, sysconfig.get_path("purelib"), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(folder) for folder in folders]


def test_what_a_format_cannot_hold_is_said_before_anything_is_collected(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="stock cannot hold what this method makes smaller"):
        plan(
            str(tiny("llama")),
            tmp_path / "plan.json",
            Options(method="kfac", format="stock", work=tmp_path / "work", **TINY),
        )
    assert not list((tmp_path / "work").glob("stats-*"))


def test_layers_are_counted_where_layers_go(
    tiny: Callable[[str], Path], tmp_path: Path, work: Path
) -> None:
    model = str(tiny("llama"))
    options = Options(method="shortgpt", layers=1, work=work, **TINY)
    decided = plan(model, tmp_path / "plan.json", options)
    assert list(decided.sizes.values()) == [2]
    assert decided.budget["layers"] == 1
    assert decided.recipe["layers"] == 1
    report = apply(tmp_path / "plan.json", tmp_path / "out", Options(work=work))
    assert report["ratio"]["linear"] == pytest.approx(1 / 3)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    with pytest.raises(UsageError, match="--layers is for methods that remove layers; kfac"):
        plan(model, tmp_path / "x.json", Options(method="kfac", layers=1, work=work, **TINY))
    with pytest.raises(Infeasible, match="removes at most 2 of 3"):
        plan(model, tmp_path / "x.json", Options(method="shortgpt", ratio=0.9, work=work, **TINY))


@pytest.mark.parametrize("option", ["refit", "probe"])
@pytest.mark.parametrize("method", ["minitron", "shortgpt"])
def test_options_about_factors_need_factors(
    method: str, option: str, tiny: Callable[[str], Path], tmp_path: Path, work: Path
) -> None:
    options = Options(method=method, work=work, **TINY, **{option: True})
    with pytest.raises(UsageError, match=f"--{option} corrects factors"):
        plan(str(tiny("llama")), tmp_path / "plan.json", options)


def test_layers_that_were_named_are_their_own_budget(
    tiny: Callable[[str], Path], tmp_path: Path, work: Path
) -> None:
    options = Options(method="selection", settings={"layers": "1"}, work=work, **TINY)
    report = compress(str(tiny("llama")), tmp_path / "out", options)
    budget = json.loads((tmp_path / "out" / "plan.json").read_text())["budget"]
    assert "ratio" not in budget, "nobody asked for one"
    assert report["params"]["compressed"] < report["params"]["budget"] == report["params"]["dense"]
