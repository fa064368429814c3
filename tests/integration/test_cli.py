"""The command line: what it answers, with which code, on which stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from done import Done, assert_one_line_error

from snapfit import pipeline
from snapfit.core.errors import SnapfitError
from snapfit.core.progress import Progress

EVERYTHING_SMALL = ["--calib-tokens", "1024", "--context", "128"]
EVALUATION = ["--eval-context", "64", "--eval-windows", "4"]


# -- bad use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--ratio", "1.5"], ["ratio", "1.5"]),
        (["--ratio", "-0.1"], ["ratio", "-0.1"]),
        (["--ratio", "nan"], ["ratio", "nan"]),
        (["--ratio", "much"], ["--ratio", "number"]),
        (["--method", "kfacc"], ["kfacc", "did you mean 'kfac'?", "asvd", "svd-llm"]),
        (["--objective", "curves"], ["curves", "did you mean 'curve'?", "gac, round, none"]),
        (["--of", "layer"], ["layer", "linear, model"]),
        (["--target", "h100_sxm", "--align", "8"], ["--align", "--target"]),
        (["--align", "0"], ["align", "0"]),
        (["--set", "alpha"], ["KEY=VALUE", "alpha"]),
        (["--calib-tokens", "10"], ["10"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
    ids=" ".join,
)
def test_bad_options(
    cli: Callable[..., Done], tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    done = cli("compress", "embedded", "-o", tmp_path / "out", *arguments)
    assert_one_line_error(done, 2, *parts)
    assert not (tmp_path / "out").exists()


def test_unknown_command(cli: Callable[..., Done]) -> None:
    assert_one_line_error(cli("comprss"), 2, "comprss")


def test_missing_output(cli: Callable[..., Done]) -> None:
    assert_one_line_error(cli("compress", "embedded"), 2, "--output")


def test_unknown_target(cli: Callable[..., Done], tmp_path: Path) -> None:
    done = cli("compress", "embedded", "-o", tmp_path / "out", "--target", "h100_sx")
    assert_one_line_error(done, 2, "h100_sx", "did you mean 'h100_sxm'?")


def test_missing_model(cli: Callable[..., Done], tmp_path: Path) -> None:
    done = cli("compress", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert_one_line_error(done, 2, "nowhere")


def test_folder_without_a_model(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cli("compress", tmp_path / "empty", "-o", tmp_path / "out")
    assert_one_line_error(done, 1, "empty", "config.json")


def test_folder_that_is_a_file(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no model")
    done = cli("compress", tmp_path / "file", "-o", tmp_path / "out")
    assert_one_line_error(done, 2, "file is a file; give the model's folder")


def test_output_that_exists(cli: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep me")
    done = cli("compress", "embedded", "-o", tmp_path / "out")
    assert_one_line_error(done, 1, "already exists", "--overwrite")
    assert (tmp_path / "out" / "precious.txt").read_text() == "keep me"


def test_no_arguments_show_help(cli: Callable[..., Done]) -> None:
    done = cli()
    assert done.code == 0
    assert "compress" in done.out


# -- what goes wrong on the way -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; rerun the same command to resume"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (SnapfitError("first\n  second"), 1, "first; second"),
    ],
    ids=["interrupt", "disk full", "two lines"],
)
def test_errors_become_a_line_and_a_code(
    cli: Callable[..., Done],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "compress", fail)
    assert_one_line_error(cli("compress", "embedded", "-o", tmp_path / "out"), code, message)


def test_failure_as_json(cli: Callable[..., Done], tmp_path: Path) -> None:
    done = cli("compress", "embedded", "-o", tmp_path / "out", "--ratio", "7", "--json")
    answer = json.loads(done.out)
    assert done.code == answer["exit_code"] == 2
    assert "ratio" in answer["error"]
    assert done.err.startswith("error: ")


def test_progress_and_stray_prints_stay_off_stdout(
    cli: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chatty(_model: str, _output: Path, _options: object, progress: Progress) -> dict[str, Any]:
        sys.stdout.write("a library talks\n")
        progress.stage("order", 2)
        progress.advance()
        progress.note("few tokens")
        progress.advance()
        return {"params": {"dense": 2, "compressed": 1}}

    monkeypatch.setattr(pipeline, "compress", chatty)
    done = cli("compress", "embedded", "-o", tmp_path / "out", "--json")
    assert json.loads(done.out) == {
        "params": {"dense": 2, "compressed": 1},
        "output": str(tmp_path / "out"),
    }
    assert "a library talks" in done.err
    assert "note: few tokens" in done.err
    assert "order: 2/2 in" in done.err


# -- the whole way ------------------------------------------------------------------------------


def snapfit(*arguments: object, work: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real process, as a user starts it."""
    code = "from snapfit.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SNAPFIT_WORK": str(work), **environment},
    )


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["table", "json"])
def test_a_full_stdout_is_one_line(tmp_path: Path, option: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    code = "from snapfit.cli import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "methods", *option],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "error: No space left on device\n"


def test_a_terminal_that_knows_ascii_only(tmp_path: Path, text: Path) -> None:
    asked = ["--method", "svd", "--objective", "none", "--eval-text", text, *EVALUATION]
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    done = snapfit(
        "compress", "embedded", "-o", tmp_path / "out", *asked, work=tmp_path / "w", **ascii_only
    )
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert done.stdout.isascii()


def test_compress_plan_apply_and_info(tmp_path: Path, text: Path) -> None:
    asked = ["--method", "svd", "--objective", "none", "--ratio", "0.3", *EVERYTHING_SMALL]
    first = snapfit(
        "compress", "embedded", "-o", tmp_path / "model", *asked, "--eval-text", text, *EVALUATION,
        "--json", work=tmp_path / "work",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["ratio"]["linear"] >= 0.3
    assert report["params"]["compressed"] < report["params"]["dense"]
    assert 0 <= report["alignment"]["mod16"] <= report["alignment"]["mod8"] <= 1
    assert report["perplexity"]["compressed"] >= 0.9 * report["perplexity"]["dense"]
    written = {file.name for file in (tmp_path / "model").iterdir()}
    assert {"config.json", "plan.json", "report.json", "report.html", "README.md"} <= written

    second = snapfit(
        "plan", "embedded", "-o", tmp_path / "plan.json", *asked, work=tmp_path / "work"
    )
    assert second.returncode == 0, second.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["sizes"] == json.loads((tmp_path / "model" / "plan.json").read_text())["sizes"]

    third = snapfit(
        "apply", tmp_path / "plan.json", "-o", tmp_path / "again", work=tmp_path / "work"
    )
    assert third.returncode == 0, third.stderr
    assert "report.html" in third.stdout
    weights = [tmp_path / name / "model.safetensors" for name in ("model", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    for path in ("embedded", tmp_path / "model", tmp_path / "plan.json"):
        told = snapfit("info", path, "--json", work=tmp_path / "work")
        assert told.returncode == 0, told.stderr
        assert isinstance(json.loads(told.stdout), dict)
