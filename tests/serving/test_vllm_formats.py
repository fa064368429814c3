"""Formats that need no plug-in, in vLLM; and `serve-check` with a vLLM engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines import answers, assert_same, running, saved
from served import factors, narrow, odd, plain

from snapfit.cli.app import run
from snapfit.core.errors import SnapfitError
from snapfit.evals.serving_engines import VllmEngine
from snapfit.evals.vllm_start import engine_settings

pytest.importorskip("vllm", reason="vLLM is not installed (pip install 'snapfit[serve]')")


@pytest.mark.parametrize(
    ("architecture", "dense"), [("llama", 0), ("gemma3_text", None), ("mixtral", None)]
)
def test_standalone(architecture: str, dense: int | None, tmp_path: Path) -> None:
    """vLLM's transformers backend decides by the first layer what it joins in all layers."""
    given = odd(plain(architecture, tmp_path / "dense"), dense=dense)
    folder = given.save(tmp_path / "small", "standalone", factors=tuple(factors(given)))
    with running(folder, **engine_settings(folder, trust_remote_code=True)) as llm:
        assert_same(folder, answers(llm))


@pytest.mark.parametrize("architecture", ["gpt_neox", "olmo2"])
def test_factored_where_vllm_has_no_class_of_its_own(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transformers backend changes transformers' classes, so it runs in another process."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = saved(odd, architecture, tmp_path, hidden_size=128)
    with running(folder) as llm:
        assert_same(folder, answers(llm))


@pytest.mark.parametrize("format_name", ["stock", "decilm"])
def test_without_factors(format_name: str, tmp_path: Path) -> None:
    given = narrow(plain("llama", tmp_path / "dense"), uniform=format_name == "stock")
    folder = given.save(tmp_path / "small", format_name)
    with running(folder, **engine_settings(folder, trust_remote_code=True)) as llm:
        assert_same(folder, answers(llm))


def test_why_an_engine_does_not_start_is_said(tmp_path: Path) -> None:
    folder = saved(odd, "llama", tmp_path)
    with pytest.raises(SnapfitError, match=r"max_model_len \(9999\) is greater than the derived"):
        VllmEngine(folder, dtype="float32", max_model_len=9999, max_tokens=64)


def test_serve_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two engines at a time, each in processes of its own; nothing but the answer on stdout."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = saved(odd, "llama", tmp_path)
    arguments = ["--against", str(tmp_path / "dense"), "--pairs", "2", "--json"]
    assert run(["serve-check", str(folder), *arguments]) == 0
    found = json.loads(capfd.readouterr().out)
    (check,) = found["engines"]
    assert found["holds"]
    assert check["parity"]["prompts"] == 16
    assert [len(time["dense_seconds"]) for time in check["times"]] == [2, 2]
    assert min(check["resident_bytes"].values()) > 1e8
