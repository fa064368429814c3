"""What cannot end well is said at once: before calibration, and with nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from done import Done, assert_one_line_error

from snapfit.checkpoint.load import load
from snapfit.pipeline.job import Job

EMBEDDED = Path(__file__).parents[2] / "src" / "snapfit" / "assets" / "embedded"


@pytest.fixture(autouse=True)
def nothing_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Job) -> None:
        raise AssertionError("this should have been refused before calibration")

    monkeypatch.setattr(Job, "_load_tokens", refuse)
    monkeypatch.setattr(Job, "dense_model", refuse)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--budget", "rubbish"], 2, "'rubbish' is no budget"),
        (["--budget", "latency=0.8"], 2, "needs a target that knows times"),
        (["--budget", "latency=0.8", "--target", "cpu"], 2, "snapfit profile --target cpu --for"),
        (["--method", "shortgpt", "--budget", "latency=0.8"], 2, "a target that knows times"),
        (["--method", "shortgpt", "--objective", "gac"], 2, "a number of layers has no alignment"),
        (["--method", "shortgpt", "--probe"], 2, "--probe corrects factors"),
        (["--method", "minitron", "--refit"], 2, "--refit corrects factors"),
        (["--method", "shortgpt", "--target", "a100_sxm,tp=3"], 2, "tp=3"),
        (["--method", "palu+minitron"], 2, "palu splits matrices"),
        (["--method", "minitron", "--set", "parts=experts"], 1, "has no experts"),
        (["--method", "kfac", "--format", "stock"], 2, "stock cannot hold"),
        (["--set", "damping=nan"], 2, "damping must be finite, found 'nan'"),
        (["--eval-text", "/nowhere.txt"], 1, "no such file: /nowhere.txt"),
        (["--eval-text", "/dev/null"], 1, "/dev/null has 0 tokens; 32 windows of 511 need 16352"),
        (
            ["--method", "flap", "--set", "parts=mlp", "--format", "decilm", "--check"],
            2,
            "pass --trust-remote-code too",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_request(
    cli: Callable[..., Done], tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    done = cli("compress", "embedded", "-o", tmp_path / "out", "--work", tmp_path, *arguments)
    assert_one_line_error(done, code, part)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["compress", "plan"])
@pytest.mark.parametrize("option", ["-o", "--work"])
def test_a_place_inside_a_file(
    cli: Callable[..., Done], tmp_path: Path, command: str, option: str
) -> None:
    (tmp_path / "file").write_text("")
    places = {"-o": tmp_path / "out", "--work": tmp_path / "work", option: tmp_path / "file" / "x"}
    done = cli(command, "embedded", *(word for place in places.items() for word in place))
    assert_one_line_error(done, 1, f"cannot write {tmp_path / 'file' / 'x'}", "Not a directory")


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_an_output_without_a_name(cli: Callable[..., Done], name: str) -> None:
    done = cli("compress", "embedded", "-o", name)
    assert_one_line_error(done, 1, f"'{name}' cannot be replaced")


@pytest.mark.parametrize("command", [["plan", "embedded"], ["layers", "embedded", "--png"]])
def test_a_folder_where_a_file_is_written(
    cli: Callable[..., Done], tmp_path: Path, command: list[str]
) -> None:
    folder = tmp_path / "some.png"
    folder.mkdir()
    place = [folder] if "--png" in command else ["-o", folder]
    done = cli(*command, *place, "--overwrite", "--work", tmp_path / "work")
    assert_one_line_error(done, 1, "some.png is a folder; give a file")


def test_a_picture_without_matplotlib(
    cli: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapfit.viz.canvas.available", lambda: False)
    done = cli("layers", "embedded", "--png", tmp_path / "a.png", "--work", tmp_path / "work")
    assert_one_line_error(done, 1, "pip install 'snapfit[report]'")


def test_a_front_of_layers(cli: Callable[..., Done], tmp_path: Path) -> None:
    asked = ["plan", "embedded", "-o", tmp_path / "plan.json", "--method", "shortgpt"]
    done = cli(*asked, "--pareto", tmp_path / "front.json", "--work", tmp_path / "work")
    assert_one_line_error(done, 2, "choose ranks or widths; shortgpt does not")
    assert list(tmp_path.iterdir()) == []


def test_a_front_in_the_file_of_the_plan(cli: Callable[..., Done], tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = cli("plan", "embedded", "-o", file, "--pareto", tmp_path / "." / "plan.json")
    assert_one_line_error(done, 2, f"-o and --pareto both name {file}")
    assert list(tmp_path.iterdir()) == []


def test_layers_of_no_model(cli: Callable[..., Done], tmp_path: Path) -> None:
    done = cli("layers", tmp_path / "nowhere", "--work", tmp_path / "work")
    assert_one_line_error(done, 2, "no model folder")


def test_a_model_made_by_its_own_code(cli: Callable[..., Done], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "architectures": ["MineForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "mine.MineConfig",
        "AutoModelForCausalLM": "mine.MineForCausalLM",
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    asked = ["compress", model, "-o", tmp_path / "out", "--work", tmp_path / "work"]
    assert_one_line_error(cli(*asked), 1, "--trust-remote-code")
    done = cli(*asked, "--trust-remote-code")
    assert_one_line_error(done, 1, "MineForCausalLM is defined by code beside its weights")
    assert load(model, trust_remote_code=True).config.model_type == "mine"
