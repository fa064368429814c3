"""From nothing to an answered request, by shell alone: see newcomer.sh."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import snapfit
from snapfit.checkpoint.load import load_tokenizer
from snapfit.evals.serving_engines import TransformersEngine

pytest.importorskip("vllm", reason="vLLM is not installed (pip install 'snapfit[serve]')")
SCRIPT = Path(__file__).with_name("newcomer.sh")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_compress_serve_and_one_request(tmp_path: Path) -> None:
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "SNAPFIT_WORK": str(tmp_path / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
        "SERVE_OPTIONS": "--enforce-eager",
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    command = ["sh", str(SCRIPT), str(tmp_path), str(free_port())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (choice,) = json.loads((tmp_path / "answer.json").read_text())["choices"]
    tokenizer = load_tokenizer(tmp_path / "small")
    engine = TransformersEngine(snapfit.load(tmp_path / "small", dtype=torch.float32))
    (expected,) = engine.answers([tuple(tokenizer("12 + 7 =")["input_ids"])], 8)
    whole = tokenizer.decode(expected, skip_special_tokens=True)
    # The server stops at the end of a sequence, and leaves it out.
    assert choice["text"].strip()
    assert whole.strip().startswith(choice["text"].strip())
