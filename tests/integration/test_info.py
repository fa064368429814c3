"""`snapfit info` of what `compress` writes, and of what somebody broke."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from done import Done, assert_one_line_error
from tiny_models import build

SMALL = ["--calib-tokens", "256", "--context", "32", "--align", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.mark.parametrize("name", ["factored", "standalone"])
def test_what_was_compressed_says_so(
    cli: Callable[..., Done], tmp_path: Path, model: Path, work: Path, name: str
) -> None:
    out = tmp_path / "out"
    done = cli("compress", model, "-o", out, "--format", name, "--work", work, *SMALL)
    assert done.code == 0, done.err
    told = cli("info", out, "--json").json
    assert told["kind"] == "compressed model"
    assert told["method"] == "kfac"
    assert told["factored_modules"] > 0
    table = cli("info", out).out
    assert "factored_modules" in table
    assert max(map(len, table.splitlines())) <= 80


def test_a_format_that_other_tools_read_is_a_model(
    cli: Callable[..., Done], tmp_path: Path, model: Path, work: Path
) -> None:
    out = tmp_path / "out"
    asked = ["--method", "shortgpt", "--layers", "1", "--format", "stock", "--work", work]
    assert cli("compress", model, "-o", out, *asked, *SMALL).code == 0
    before, after = cli("info", model, "--json").json, cli("info", out, "--json").json
    assert after["kind"] == "model"
    assert after["layers"] == before["layers"] - 1


def test_the_code_that_decilm_writes_runs_to_measure_perplexity(
    cli: Callable[..., Done], tmp_path: Path, model: Path, work: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{4 + i * i % 60}" for i in range(400)))
    asked = ["--method", "minitron", "--set", "parts=mlp", "--format", "decilm", "--work", work]
    measure = ["--eval-text", text, "--eval-context", "32", "--eval-windows", "4", "--json"]
    done = cli("compress", model, "-o", tmp_path / "out", *asked, *SMALL, *measure)
    assert done.code == 0, done.err
    perplexity = done.json["perplexity"]
    assert 1 < perplexity["dense"] < 1000
    assert 1 < perplexity["compressed"] < 1000
    assert perplexity["compressed"] != perplexity["dense"]


@pytest.mark.parametrize(
    ("report", "part"),
    [
        ("5", "is no table"),
        ("[]", "is no table"),
        ('{"perplexity": {"dense": NaN}}', "a figure that is not finite"),
        ('{"half": ', "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        (f'{{"params": {"1" * 6000}}}', "not readable JSON"),
    ],
    ids=["number", "list", "nan", "truncated", "nested", "long"],
)
def test_a_broken_report(
    cli: Callable[..., Done], tmp_path: Path, model: Path, work: Path, report: str, part: str
) -> None:
    out = tmp_path / "out"
    assert cli("compress", model, "-o", out, "--work", work, *SMALL).code == 0
    (out / "report.json").write_text(report)
    assert_one_line_error(cli("info", out), 1, "report.json", part)
