"""`snapfit align`, `perplexity`, `methods` and `targets`: what is beside the main job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from done import Done, assert_one_line_error


def dims(**changes: Any) -> dict[str, Any]:
    groups = [
        {"name": f"layer{i}", "size": 100.5 + i, "full": 256, "cost": 512, "score": 1.0 + i}
        for i in range(4)
    ]
    return {"groups": groups, **changes}


# -- lists --------------------------------------------------------------------------------------


def test_methods(cli: Callable[..., Done]) -> None:
    listed = json.loads(cli("methods", "--json").out)["methods"]
    assert {"svd", "asvd", "fwsvd", "svd-llm", "kfac", "palu"} <= listed.keys()
    assert all(listed.values())
    assert not {"base", "registry"} & listed.keys()
    assert "svd-llm" in cli("methods").out


def test_targets(cli: Callable[..., Done]) -> None:
    listed = json.loads(cli("targets", "--json").out)["targets"]
    assert {"cpu", "a100_sxm", "h100_sxm"} <= {target["target"] for target in listed}
    assert "h100_sxm" in cli("targets").out


# -- align --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "multiple"), [([], 16), (["--align", 24], 24), (["--target", "a100_sxm"], 16)]
)
def test_align(
    cli: Callable[..., Done], tmp_path: Path, arguments: list[object], multiple: int
) -> None:
    (tmp_path / "dims.json").write_text(json.dumps(dims()))
    done = cli("align", tmp_path / "dims.json", "-o", tmp_path / "out.json", *arguments)
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "out.json").read_text())
    assert all(group["size"] % multiple == 0 for group in written["groups"])
    assert written["params"]["after"] <= written["budget"]


def test_align_keeps_a_share(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "dims.json").write_text(json.dumps(dims()))
    files = [tmp_path / "dims.json", "-o", tmp_path / "out.json"]
    done = cli("align", *files, "--keep", 0.5, "--json")
    answer = json.loads(done.out)
    assert answer["params"]["after"] <= 0.5 * answer["params"]["dense"]


def test_align_does_not_overwrite(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "dims.json").write_text(json.dumps(dims()))
    (tmp_path / "out.json").write_text("precious")
    done = cli("align", tmp_path / "dims.json", "-o", tmp_path / "out.json")
    assert_one_line_error(done, 1, "out.json", "--overwrite")
    assert (tmp_path / "out.json").read_text() == "precious"


@pytest.mark.parametrize(
    ("data", "part"),
    [
        ({"groups": []}, "empty"),
        ({}, "groups"),
        ({"groups": [{"name": "a", "size": 3}]}, "full"),
        (dims(budget=-1), "budget"),
    ],
)
def test_align_refuses_damaged_tables(
    cli: Callable[..., Done], tmp_path: Path, data: dict[str, Any], part: str
) -> None:
    (tmp_path / "dims.json").write_text(json.dumps(data))
    done = cli("align", tmp_path / "dims.json", "-o", tmp_path / "out.json")
    assert_one_line_error(done, 2, part)
    assert not (tmp_path / "out.json").exists()


# -- perplexity ---------------------------------------------------------------------------------


def test_perplexity(cli: Callable[..., Done], text: Path) -> None:
    done = cli("perplexity", "embedded", "--text", text, "--context", 64, "--windows", 3, "--json")
    answer = json.loads(done.out)
    assert 1 < answer["perplexity"] < 60
    assert answer["n"] == 3 * 63
    assert answer["settings"]["text"] == "held_out.txt"


def test_perplexity_of_too_little_text(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("bako color -> teal")
    done = cli("perplexity", "embedded", "--text", tmp_path / "short.txt")
    assert done.code == 1
    assert "short.txt has 4 tokens" in done.err
