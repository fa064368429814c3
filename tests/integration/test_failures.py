"""What goes wrong in real life, through the command line: a message, and no half-written output.

Damaged model folders are tested one by one in tests/unit/test_open_model.py, damaged checkpoints
in test_checkpoint.py and malformed options, plans and tables in test_cli.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import build

from snapfit.cli.app import run

SMALL = ["--calib-tokens", "512", "--context", "64", "--ratio", "0.2", "--align", "4"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build("llama", tmp_path / "model")


def change_weight(model: Path, name: str, value: float) -> None:
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors[name].flatten()[3] = value
    save_file(tensors, file, metadata={"format": "pt"})


def fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object, code: int = 1
) -> str:
    """Run `compress`, expect one line on stderr, exit code `code` and nothing at the output."""
    output = tmp_path / "out"
    command = ["compress", *map(str, arguments), "-o", str(output), "--work", str(tmp_path / "w")]
    assert run(command) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert not output.exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".out")] == []
    return lines[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, model, tmp_path, capsys):
    change_weight(model, "model.layers.1.mlp.up_proj.weight", value)
    message = fails(capsys, tmp_path, model, *SMALL, "--method", "svd", "--objective", "none")
    assert "model.layers.1.mlp.up_proj" in message


def test_activations_that_overflow(model, tmp_path, capsys):
    for name in ("gate_proj", "up_proj"):
        change_weight(model, f"model.layers.1.mlp.{name}.weight", 3e38)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 50}" for i in range(2000)))
    message = fails(capsys, tmp_path, model, *SMALL, "--calib", text)
    assert "layer 1" in message


def test_fewer_tokens_than_dimensions_is_no_failure(model, tmp_path):
    """Singular moments: 16 tokens for 32 and 48 inputs, where a Cholesky factor does not exist."""
    arguments = ["--calib-tokens", "16", "--context", "16", "--align", "4", "--method", "svd-llm"]
    output = tmp_path / "out"
    assert run(["compress", str(model), "-o", str(output), *arguments]) == 0
    tensors = load_file(output / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert "few" in (output / "report.html").read_text()


@pytest.mark.parametrize("of", ["linear", "model"])
def test_a_ratio_that_cannot_be_reached_names_the_largest_that_can(of, model, tmp_path, capsys):
    message = fails(capsys, tmp_path, model, *SMALL, "--ratio", "0.97", "--of", of)
    assert "0.97" in message
    largest = float(message.split("ratio is ")[1].split(";")[0])
    assert 0.3 < largest < 0.97
    reachable = [*SMALL, "--ratio", f"{largest - 1e-3:.4f}", "--of", of]
    again = ["compress", str(model), "-o", str(tmp_path / "ok"), "--work", str(tmp_path / "w")]
    assert run([*again, *reachable]) == 0


def test_a_missing_tokenizer(model, tmp_path, capsys):
    for file in model.glob("*token*"):
        file.unlink()
    text = tmp_path / "text.txt"
    text.write_text("a b c " * 1000)
    message = fails(capsys, tmp_path, model, *SMALL, "--calib", text)
    assert "tokenizer" in message
    command = ["compress", str(model), "-o", str(tmp_path / "self"), "--work", str(tmp_path / "w")]
    assert run([*command, *SMALL]) == 0, "--calib self needs no tokenizer"


def test_a_model_that_is_not_causal(model, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text())
    config.update(model_type="bert", architectures=["BertForMaskedLM"])
    (model / "config.json").write_text(json.dumps(config))
    assert "causal" in fails(capsys, tmp_path, model, *SMALL)


def test_a_corrupt_shard(model, tmp_path, capsys):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors" in fails(capsys, tmp_path, model, *SMALL)


def test_a_damaged_work_file_is_named(model, tmp_path, capsys):
    command = ["compress", str(model), "-o", str(tmp_path / "first"), "--work", str(tmp_path / "w")]
    assert run([*command, *SMALL]) == 0
    damaged = next((tmp_path / "w").glob("ordered-*/layer_001.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    capsys.readouterr()
    message = fails(capsys, tmp_path, model, *SMALL)
    assert str(damaged) in message.replace("\n", "")
    assert "delete it" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = shutil.which("mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount and subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    )
    if not done or done.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("full", ["output", "work"])
def test_a_full_disk(full, small_disk, tmp_path, capsys):
    (small_disk / "ballast").write_bytes(b"0" * 900_000)
    output = (small_disk if full == "output" else tmp_path) / "out"
    work = (small_disk if full == "work" else tmp_path) / "w"
    command = ["compress", "embedded", "-o", str(output), "--work", str(work), *SMALL]
    assert run(command) == 1
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(errors) == 1
    assert "space" in errors[0]
    assert not output.exists()
    assert [p for p in small_disk.rglob("*") if p.name.startswith((".out", ".layer"))] == []


def digest(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.suffix == ".safetensors" or file.name == "plan.json"
    }


@pytest.mark.parametrize(
    "stage", ["stats-*/*/layer_*.safetensors", "ordered-*/layer_*.safetensors"]
)
def test_a_killed_run_resumes_and_ends_in_the_same_bytes(stage, tmp_path):
    """A real process and a real SIGKILL, as soon as two layers of a stage are on disk."""
    arguments = ["compress", "embedded", *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(output: Path, work: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "snapfit", *arguments]
        command += ["-o", str(output), "--work", str(work)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole", tmp_path / "w1").wait() == 0

    process = start(tmp_path / "killed", tmp_path / "w2")
    deadline = time.monotonic() + 120
    while len(done := sorted((tmp_path / "w2").glob(stage))) < 2:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    kept = {path: path.stat().st_mtime_ns for path in done}

    assert start(tmp_path / "killed", tmp_path / "w2").wait() == 0
    redone = [path for path, time_ns in kept.items() if path.stat().st_mtime_ns != time_ns]
    assert len(redone) <= 1, "more than one finished layer was redone"
    first, second = digest(tmp_path / "whole"), digest(tmp_path / "killed")
    assert first == second
    assert any(name.endswith(".safetensors") for name in first)
