"""`snapfit targets`, and what becomes of a target that cannot be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from done import Done

from snapfit.core.candidates import AlignRule
from snapfit.core.profile import Profile
from snapfit.hardware import target_names


def test_targets_lists_every_name_within_80_columns(cli: Callable[..., Done]) -> None:
    done = cli("targets")
    assert done.code == 0
    assert all(name in done.out for name in target_names())
    assert "quant=block-fp8" in done.out
    assert "measured here, when asked" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_targets_as_json(cli: Callable[..., Done]) -> None:
    found = cli("targets", "--json").json
    by_name = {fact["target"]: fact for fact in found["targets"]}
    assert by_name.keys() == set(target_names())
    assert by_name["a100_sxm"]["rank_multiple"] == 16
    assert all(rule["source"] for fact in by_name.values() for rule in fact.get("rules", ()))
    assert "Machete" in found["stack"]["quant=machete"]


def test_one_target_with_its_stack(cli: Callable[..., Done]) -> None:
    text = "h100_sxm,tp=2,quant=marlin,engine=vllm"
    assert "tp=2 gives every device" in cli("targets", text).out
    found = cli("targets", text, "--json").json
    assert found["rank_multiple"] == 128
    assert {rule["shares"] for rule in found["rules"]} == {2}
    assert found["formats"] == ["standalone", "decilm", "stock", "folded"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100", "did you mean 'h100_sxm'?"),
        ("a100_sxm,quant=nvfp4", "does not run on a100_sxm"),
        ("cpu,engine=vlm", "did you mean 'vllm'?"),
    ],
)
def test_a_wrong_target_is_one_line(cli: Callable[..., Done], text: str, message: str) -> None:
    done = cli("targets", text)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""


def test_brackets_in_a_profile_are_shown_as_they_are(
    cli: Callable[..., Done], tmp_path: Path
) -> None:
    rule = AlignRule(axis="in", multiple=8, source="swept [/bold] [red]")
    made = Profile(device="gpu [/i]", software="", dtype="float16", rules=(rule,))
    file = tmp_path / "p.json"
    file.write_text(json.dumps(made.to_json()))
    done = cli("targets", file)
    assert done.code == 0, done.err
    assert "gpu [/i], float16" in " ".join(done.out.split())
    assert "swept [/bold] [red]" in done.out


def test_listing_loads_neither_torch_nor_tables() -> None:
    code = (
        "import sys\nfrom snapfit.cli.app import run\n"
        "assert run(['targets']) == 0\nassert run(['targets', 'h100_sxm,tp=2']) == 0\n"
        "print('loaded', *({'torch', 'pyarrow', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1].strip() == "loaded"


@pytest.mark.parametrize(
    ("target", "clash"),
    [
        ("h100_sxm,tp=3", "has 4 query and 2 key-value heads, refused by: tp=3 gives every device"),
        ("h100_sxm,quant=machete", "has N 64 and K 128, refused by: Machete takes N 128 and K 64"),
        ("a100_sxm,tp=2,quant=block-fp8", "quant=block-fp8 does not run on a100_sxm"),
    ],
)
def test_a_plan_for_an_impossible_target_names_the_clash(
    cli: Callable[..., Done], tmp_path: Path, target: str, clash: str
) -> None:
    output = tmp_path / "plan.json"
    ask = ["--method", "svd", "--target", target, "--work", tmp_path / "work"]
    done = cli("plan", "embedded", "-o", output, *ask)
    assert done.code == 2
    assert clash in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not output.exists()
    assert not list((tmp_path / "work").glob("stats*")), "it is said before calibration"
