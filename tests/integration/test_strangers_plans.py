"""Plans of strangers: what `snapfit apply` believes, and what it leaves behind when it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from done import Done, assert_one_line_error

from snapfit.core.files import read_json, write_json
from snapfit.core.options import Options
from snapfit.pipeline import plan

SMALL = {"calib_tokens": 512, "context": 64}
ATTENTION = "model.layers.0.self_attn"
QUERY = f"{ATTENTION}.q_proj"

PLAN = {
    "schema": 1,
    "model": "embedded",
    "revision": "r",
    "architecture": "llama",
    "method": "svd",
    "objective": "curve",
    "sizes": {"model.layers.0.mlp.up_proj": 8},
    "budget": {},
    "predicted": {},
}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"sizes": {"../../etc/passwd": 8}}, "../../etc/passwd"),
        ({"sizes": {"/etc/passwd": 8}}, "/etc/passwd"),
        ({"sizes": {"model..layers": 8}}, "model..layers"),
        ({"sizes": {"model.layers.0.mlp.up_proj": 1e9}}, "1000000000.0"),
        ({"method": "../kfac"}, "../kfac"),
        ({"schema": 99}, "99"),
        ({"sizes": {}}, "empty"),
        ({"budget": {"params": 10**400}}, "budget[params]"),
    ],
)
def test_hostile_plan(
    cli: Callable[..., Done], tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, **changes}))
    done = cli("apply", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert_one_line_error(done, 1, part)
    assert not (tmp_path / "out").exists()


def test_plan_that_is_no_json(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    assert_one_line_error(
        cli("apply", tmp_path / "plan.json", "-o", tmp_path / "out"), 1, "plan.json", "JSON"
    )


def test_plan_that_is_missing(cli: Callable[..., Done], tmp_path: Path) -> None:
    done = cli("apply", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert_one_line_error(done, 1, "no such file", "plan.json")


# -- plans that were ours -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory, work: Path) -> Callable[[str], dict[str, Any]]:
    """A plan of the embedded model, by method."""
    folder = tmp_path_factory.mktemp("plans")

    def of(method: str) -> dict[str, Any]:
        file = folder / f"{method}.json"
        if not file.exists():
            plan("embedded", file, Options(method=method, work=work, **SMALL))
        found: dict[str, Any] = read_json(file)
        return found

    return of


@pytest.mark.parametrize(
    ("table", "entries", "part"),
    [
        ("budget", {"params": None}, "budget[params] must be a finite number, found None"),
        ("budget", {"params": "many"}, "budget[params] must be a finite number, found 'many'"),
        ("predicted", {"loss": "low"}, "predicted[loss] must be a finite number, found 'low'"),
        ("predicted", {"latency.us": 1.0}, "predicted[latency.dense_us] must be a finite number"),
        ("recipe", {"method": "svd"}, "the plan's method is 'kfac', that of its recipe 'svd'"),
        ("recipe", {"seed": 7}, "the plan's seed is 0, that of its recipe 7"),
        ("recipe", {"calib": "/nowhere.txt"}, "/nowhere.txt"),
        ("sizes", {QUERY: 127}, "the size 127; it can have 1 to 63, or 128"),
    ],
)
def test_a_plan_that_was_changed(
    cli: Callable[..., Done],
    tmp_path: Path,
    work: Path,
    plans: Callable[[str], dict[str, Any]],
    table: str,
    entries: dict[str, Any],
    part: str,
) -> None:
    changed = plans("kfac")
    changed[table] |= entries
    write_json(tmp_path / "plan.json", changed)
    done = cli("apply", tmp_path / "plan.json", "-o", tmp_path / "out", "--work", work)
    assert_one_line_error(done, 1, part)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("heads", [0, 1])
def test_a_mixed_plan_that_decides_twice_about_the_same_weights(
    cli: Callable[..., Done],
    tmp_path: Path,
    work: Path,
    plans: Callable[[str], dict[str, Any]],
    heads: int,
) -> None:
    changed = plans("mixed")
    changed["sizes"] |= {ATTENTION: heads, QUERY: 16}
    write_json(tmp_path / "plan.json", changed)
    done = cli("apply", tmp_path / "plan.json", "-o", tmp_path / "out", "--work", work)
    assert_one_line_error(done, 1, f"makes {ATTENTION} and {QUERY} smaller")
    assert not (tmp_path / "out").exists()


def test_calibration_text_that_changed_is_noted(
    cli: Callable[..., Done], tmp_path: Path, work: Path, text: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text.read_text())
    asked = ["--calib", file, "--calib-tokens", 512, "--context", 64, "--work", work]
    assert cli("plan", "embedded", "-o", tmp_path / "plan.json", *asked).code == 0
    apply = ["apply", tmp_path / "plan.json", "--work", work]
    assert "other calibration tokens" not in cli(*apply, "-o", tmp_path / "same").err
    file.write_text(text.read_text()[1000:])
    done = cli(*apply, "-o", tmp_path / "other")
    assert done.code == 0
    assert "the plan was made with other calibration tokens" in done.err


def test_a_whole_number_is_a_ratio_too(
    cli: Callable[..., Done], tmp_path: Path, work: Path
) -> None:
    plan("embedded", tmp_path / "plan.json", Options(ratio=0, work=work, **SMALL))
    done = cli("apply", tmp_path / "plan.json", "-o", tmp_path / "out", "--work", work, "--json")
    assert done.code == 0, done.err
    assert done.json["ratio"]["linear"] == 0
    told = cli("info", tmp_path / "out", "--json")
    assert told.code == 0, told.err
    assert told.json["factored_modules"] == 0
