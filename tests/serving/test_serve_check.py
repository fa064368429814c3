"""`snapfit serve-check`: what it asks of engines, what it refuses, what it says."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import factors, odd, plain, rough

import snapfit
from snapfit.cli.app import run
from snapfit.cli.serve_check import serve_check_text
from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.files import write_json
from snapfit.core.plan import Plan
from snapfit.evals.serving import PROMPTS, TOKENS, compare
from snapfit.evals.serving_engines import TransformersEngine, VllmEngine
from snapfit.evals.vllm_start import engine_settings
from snapfit.pipeline.serve_check import Settings, serve_check
from snapfit.pipeline.serve_request import workload_for


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(compressed, dense)."""
    folder = tmp_path_factory.mktemp("served")
    given = odd(plain("llama", folder / "dense"))
    return given.save(folder / "small", factors=tuple(factors(given))), folder / "dense"


def planned(model: str, **predicted: Any) -> dict[str, Any]:
    """A plan of that model, as it is on disk."""
    return Plan(
        model=model,
        revision="1",
        architecture="llama",
        method="kfac",
        objective="curve",
        sizes={"model.layers.0.mlp.up_proj": 8},
        budget={},
        predicted=predicted,
    ).to_json()


def test_another_model_is_found_out(folders: tuple[Path, Path]) -> None:
    small, dense = folders
    ours = TransformersEngine(snapfit.load(small))
    prompts = [(1, 9, 17), (1, 20), (1, 33, 8)]
    assert compare(ours.logits, prompts, ours.answers(prompts, 16), 1e-3).holds
    theirs = TransformersEngine(snapfit.load(dense)).answers(prompts, 16)
    assert not compare(ours.logits, prompts, theirs, 1e-3).holds


def test_transformers_beside_the_dense_model(folders: tuple[Path, Path]) -> None:
    small, dense = folders
    settings = Settings(
        engine="transformers", against=dense, workload="prefill:1x16,decode:2x8*4", pairs=2
    )
    found = serve_check(small, settings)
    (check,) = found.engines
    assert found.holds
    assert check.parity.prompts == len(PROMPTS)
    assert check.parity.tokens == TOKENS
    assert [len(time.ratios) for time in check.times] == [2, 2]
    assert found.weight_bytes["compressed"] < found.weight_bytes["dense"]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["engines"][0]["ratio"]["n"] == 2
    text = list(serve_check_text(found))
    assert "tokens: 16 of 16 prompts equal over 64 tokens" in text
    assert max(len(line) for line in text if str(small.parent) not in line) <= 80


def test_half_precision_is_held_to_its_own_rounding(folders: tuple[Path, Path]) -> None:
    settings = Settings(engine="transformers", dtype="bfloat16", pairs=0)
    (check,) = serve_check(folders[0], settings).engines
    assert check.parity.holds
    assert check.times == ()


def test_the_command_fails_where_tokens_differ(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["serve-check", str(folders[0]), "--engine", "transformers", "--pairs", "0"]
    assert run(arguments) == 0
    right = TransformersEngine.answers

    def wrong(self: Any, prompts: Any, tokens: int) -> Any:
        return [(*ids[:5], (ids[5] + 1) % 60, *ids[6:]) for ids in right(self, prompts, tokens)]

    monkeypatch.setattr(TransformersEngine, "answers", wrong)
    assert run(arguments) == 1
    out = capsys.readouterr().out
    assert "NOT THE SAME MODEL: 16 differ by more than 0.001" in out
    assert "token 5:" in out


def test_what_the_plan_predicts_is_shown_as_predicted(folders: tuple[Path, Path]) -> None:
    found = serve_check(folders[0], Settings(engine="transformers", pairs=0))
    assert found.predicted is None
    known = {"share": 0.8, "spread": 0.05, "workload": "prefill:1x16", "device": "a100_sxm"}
    lines = list(serve_check_text(replace(found, predicted=known)))
    assert any(line.startswith("predicted ") and "0.800 +- 5%" in line for line in lines)
    assert "  for prefill:1x16 on a100_sxm" in lines


@pytest.mark.parametrize("wrong", [{"share": "fast"}, {"spread": "x"}, {"workload": 8}])
def test_a_prediction_written_by_a_stranger_is_checked(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    known = {"share": 0.8, "spread": 0.05, "workload": "prefill:1x16", "device": "x", **wrong}
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    plan = planned("base", **{f"latency.{key}": value for key, value in known.items()})
    write_json(tmp_path / "plan.json", plan)
    with pytest.raises(CorruptFile, match=r"plan\.json predicts a time that is malformed"):
        serve_check(tmp_path, Settings(engine="transformers"))


def test_a_target_predicts_both_models(folders: tuple[Path, Path]) -> None:
    for module in ("aiconfigurator_core", "pyarrow"):
        pytest.importorskip(module, reason="the extra 'hardware' is not installed")
    settings = Settings(
        engine="transformers",
        against=folders[1],
        workload="prefill:1x16,decode:2x8",
        target="a100_pcie",
        pairs=0,
    )
    predicted = serve_check(folders[0], settings).predicted
    assert predicted is not None
    assert set(predicted["phases"]) == {"prefill:1x16", "decode:2x8"}
    assert predicted["device"] == "a100_pcie"
    # Three of four layers, but two kernels where a matrix is factored: launches rule such a size.
    assert 0.3 < predicted["share"] < 2


def test_code_runs_only_where_it_may(tmp_path: Path) -> None:
    given = plain("llama", tmp_path / "dense")
    folder = given.save(tmp_path / "standalone", "standalone")
    with pytest.raises(UsageError, match="holds code that vLLM must run"):
        engine_settings(folder, trust_remote_code=False)
    assert engine_settings(folder, trust_remote_code=True) == {
        "trust_remote_code": True,
        "model_impl": "transformers",
    }
    assert engine_settings(tmp_path / "dense", trust_remote_code=False) == {}


def test_what_vllm_cannot_hold_of_standalone_is_refused(tmp_path: Path) -> None:
    folder = rough(plain("llama", tmp_path / "dense")).save(tmp_path / "small", "standalone")
    with pytest.raises(SnapfitError, match=r"fewer heads or without attention.*save .* 'factored'"):
        engine_settings(folder, trust_remote_code=True)


def test_models_have_the_names_that_they_have_everywhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["serve-check", "embedded", "--engine", "transformers", "--against", "embedded"]
    assert run([*arguments, "--pairs", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["against"]) == ("embedded", "embedded")
    assert found["weight_bytes"]["compressed"] == found["weight_bytes"]["dense"] > 1e6


def test_the_dense_model_is_the_plans(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    small = shutil.copytree(folders[0], tmp_path / "small")
    for name, expected in (("embedded", "embedded"), (str(folders[1]),) * 2, ("an/other", None)):
        write_json(small / "plan.json", planned(name))
        assert serve_check(small, Settings(engine="transformers", pairs=0)).against == expected


def test_a_folder_without_a_configuration_is_found_out_first(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapfit.pipeline.serve_check.load", None)  # takes long for large models
    with pytest.raises(SnapfitError, match=r"has no config\.json"):
        serve_check(folders[0], Settings(against=tmp_path))
    with pytest.raises(SnapfitError, match="no such file"):
        engine_settings(tmp_path, trust_remote_code=False)


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (2048, "prefill:1x512,decode:8x128"),
        (545, "prefill:1x512,decode:8x128"),
        (544, "prefill:1x256,decode:8x64"),
        (None, "prefill:1x512,decode:8x128"),
    ],
)
def test_what_is_timed_where_nobody_says_fits_the_context(
    context: int | None, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
    assert str(workload_for(tmp_path, None, None)) == expected
    assert str(workload_for(tmp_path, None, {"workload": "prefill:1x9"})) == "prefill:1x9"


def test_a_checkpoint_that_names_no_dtype_needs_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match=r"config\.json names no dtype; give --dtype float32"):
        serve_check(tmp_path, Settings(engine="transformers"))


def test_quantised_checkpoints_have_no_reference(tmp_path: Path) -> None:
    config = {"model_type": "llama", "quantization_config": {"quant_method": "compressed-tensors"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SnapfitError, match=r"is quantised \(compressed-tensors\)"):
        serve_check(tmp_path, Settings(engine="transformers"))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_way_on_is_said(folders: tuple[Path, Path]) -> None:
    with pytest.raises(SnapfitError, match=r"pip install 'snapfit\[serve\]', or use --engine"):
        VllmEngine(folders[0], dtype="float32", max_model_len=64, max_tokens=64)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--engine", "tgi"], "unknown engine 'tgi'"),
        (["--engine", "transformers", "--dtype", "int8"], "dtype 'int8' is none of float32"),
        (["--engine", "transformers", "--workload", "x"], "is no phase of a workload"),
        (["--engine", "transformers", "--against", "/absent"], "no model folder '/absent'"),
        (["--engine", "transformers", "--target", "a100_pcie"], "give --against"),
    ],
)
def test_bad_use_is_one_line(
    folders: tuple[Path, Path],
    options: list[str],
    match: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["serve-check", str(folders[0]), *options]) == 2
    assert match in capsys.readouterr().err
