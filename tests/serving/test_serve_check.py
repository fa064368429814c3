"""`snapfit serve-check`: what it compares, how it times, what it says."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from served import factors, odd, plain, rough
from torch import Tensor

import snapfit
from snapfit.cli.app import run
from snapfit.cli.serve_check import serve_check_text
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.workload import Phase, Workload
from snapfit.evals.serving import PROMPTS, TOKENS, Divergence, compare
from snapfit.evals.serving_engines import TransformersEngine, VllmEngine, engine_settings
from snapfit.evals.serving_time import PhaseTime, measure, summary, total_ratios
from snapfit.pipeline.serve_check import Settings, serve_check


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(compressed, dense)."""
    folder = tmp_path_factory.mktemp("served")
    given = odd(plain("llama", folder / "dense"))
    return given.save(folder / "small", factors=tuple(factors(given))), folder / "dense"


def next_is(successor: Callable[[int], int], runner_up: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Logits of a model that prefers `successor(token)`, and likes 0 nearly as much."""

    def logits(ids_T: Tensor) -> Tensor:
        logits_TV = torch.zeros(len(ids_T), 20)
        logits_TV[:, 0] = runner_up
        for row, token in enumerate(ids_T.tolist()):
            logits_TV[row, successor(token)] = 1.0
        return logits_TV

    return logits


def test_equal_tokens_hold() -> None:
    parity = compare(next_is(lambda t: t + 1), [(3,), (5, 6)], [(4, 5, 6), (7, 8, 9)], 1e-3)
    assert parity.equal == parity.prompts == 2
    assert parity.holds


def test_the_first_difference_counts_and_ties_are_forgiven() -> None:
    found = [(4, 5), (4, 0, 9)]  # the second goes its own way after 4
    near = compare(next_is(lambda t: t + 1, runner_up=0.9995), [(3,), (3,)], found, 1e-3)
    assert near.divergences == (
        Divergence(prompt=1, position=1, expected=5, found=0, gap=pytest.approx(0.0005, abs=1e-6)),
    )
    assert near.holds
    far = compare(next_is(lambda t: t + 1, runner_up=0.5), [(3,), (3,)], found, 1e-3)
    assert not far.holds
    assert far.wrong[0].gap == pytest.approx(0.5)


def test_a_reference_that_is_not_finite_is_no_tie() -> None:
    def broken(ids_T: Tensor) -> Tensor:
        return torch.full((len(ids_T), 20), torch.nan)

    parity = compare(broken, [(3,)], [(4, 5)], 1e-3)
    assert not parity.holds
    assert (
        json.loads(json.dumps(parity.to_json(), allow_nan=False))["divergences"][0]["gap"] is None
    )


def test_another_model_is_found_out(folders: tuple[Path, Path]) -> None:
    small, dense = folders
    ours = TransformersEngine(snapfit.load(small))
    prompts = [(1, 9, 17), (1, 20), (1, 33, 8)]
    assert compare(ours.logits, prompts, ours.answers(prompts, 16), 1e-3).holds
    theirs = TransformersEngine(snapfit.load(dense)).answers(prompts, 16)
    assert not compare(ours.logits, prompts, theirs, 1e-3).holds


class Clock:
    """An engine that takes known times and remembers when it was asked."""

    def __init__(self, log: list[str], name: str, seconds: list[float]) -> None:
        self.log, self.name, self.seconds = log, name, seconds

    def prefill_seconds(self, batch: int, tokens: int) -> float:
        self.log.append(f"{self.name}:{batch}x{tokens}")
        return self.seconds.pop(0)

    def step_seconds(self, batch: int, tokens: int, steps: int) -> float:
        return self.prefill_seconds(batch, tokens) / 10


def test_runs_are_paired_alternate_and_the_first_is_left_out() -> None:
    log: list[str] = []
    ours = Clock(log, "a", [9.0, 1.0, 2.0, 3.0])
    theirs = Clock(log, "b", [9.0, 2.0, 2.0, 4.0])
    (time,) = measure(Workload.parse("prefill:2x8"), ours, theirs, pairs=3)
    assert log == ["b:2x8", "a:2x8", "a:2x8", "b:2x8", "b:2x8", "a:2x8", "a:2x8", "b:2x8"]
    assert time.seconds == (1.0, 2.0, 3.0)
    assert time.ratios == (0.5, 1.0, 0.75)
    assert summary(time.ratios) == {"median": 0.75, "lowest": 0.5, "highest": 1.0, "n": 3}
    assert time.tokens_per_second == 16 / 2.0


def test_a_workload_is_the_weighted_sum_of_its_phases() -> None:
    workload = Workload.parse("prefill:1x4,decode:1x4*30")
    ours = Clock([], "a", [9.0, 1.0, 9.0, 1.0])
    theirs = Clock([], "b", [9.0, 2.0, 9.0, 1.0])
    times = measure(workload, ours, theirs, pairs=1)
    assert times[1].seconds == (0.1,)
    assert total_ratios(times) == ((1 + 30 * 0.1) / (2 + 30 * 0.1),)
    alone = PhaseTime(phase=Phase(kind="prefill", batch=1, tokens=4), seconds=(1.0,))
    assert total_ratios([alone]) == ()


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
