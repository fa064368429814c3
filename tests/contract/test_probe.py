"""Curves corrected by measured divergence, on a dense model and on one with experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import sample_ids

from snapfit.core.errors import UsageError
from snapfit.evals.divergence import divergences
from snapfit.pipeline import Options, compress
from snapfit.pipeline.job import Job
from snapfit.pipeline.probe import role_corrections


class Counting:
    """Counts the stages that ran."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def stage(self, name: str, total: int) -> None:
        self.stages.append(name)

    def advance(self, done: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3_moe"])
def test_predictions_are_scaled_by_what_was_measured(
    architecture: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    options = Options(
        ratio=0.3, align=4, calib_tokens=512, context=32, probe=True, work=tmp_path / "w"
    )
    first, second = Counting(), Counting()
    compress(str(tiny(architecture)), tmp_path / "a", options, first)
    compress(str(tiny(architecture)), tmp_path / "b", options, second)
    assert "probe" in first.stages
    assert "probe" not in second.stages, "the measurement is kept in the work folder"

    plan = json.loads((tmp_path / "a" / "plan.json").read_text())
    assert plan == json.loads((tmp_path / "b" / "plan.json").read_text())
    factors = {k: v for k, v in plan["predicted"].items() if k.startswith("correction.")}
    assert factors
    assert all(0 < factor < 1e4 for factor in factors.values())
    job = Job(model=str(tiny(architecture)), options=options, progress=Counting())
    corrected = sum(
        factors[f"correction.{g.role}"] * float(job.curves[g.name].at(plan["sizes"][g.name]))
        for g in job.space.groups
    )
    assert plan["predicted"]["loss"] == pytest.approx(corrected)


def test_only_tokens_that_count_are_measured(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """What follows the tokens that count can change nothing: attention looks back only."""
    options = Options(ratio=0.3, align=4, calib_tokens=512, context=32, probe=True)
    found = []
    for name in ("one", "other"):
        job = Job(
            model=str(tiny("llama")),
            options=replace(options, work=tmp_path / name),
            progress=Counting(),
        )
        sizes = {group.name: group.break_even // 2 for group in job.space.groups}
        curves = job.curves
        tokens = job.tokens
        mask_BT = torch.zeros_like(tokens.ids_BT, dtype=torch.bool)
        mask_BT[:, :16] = True
        ids_BT = tokens.ids_BT.clone()
        if name == "other":
            ids_BT[:, 16:] = 7
        vars(job)["tokens"] = replace(tokens, ids_BT=ids_BT, mask_BT=mask_BT)
        assert curves is job.curves, "the bases are those of the same tokens"
        found.append(role_corrections(job, sizes))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_divergence_is_the_kl_of_the_next_token_and_leaves_the_model_alone(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    job = Job(model=str(tiny("llama")), options=Options(work=tmp_path), progress=Counting())
    model = job.dense_model()
    name = "model.layers.1.mlp.up_proj.weight"
    before = model.get_parameter(name).data.clone()
    ids_BT = sample_ids(2, 12)
    found = divergences(model, ids_BT, {"same": {name: before}, "half": {name: before / 2}})
    assert found["same"] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        original = model(input_ids=ids_BT).logits.log_softmax(-1)
        assert torch.equal(model.get_parameter(name).data, before)
        model.get_parameter(name).data.mul_(0.5)
        changed = model(input_ids=ids_BT).logits.log_softmax(-1)
    expected = torch.nn.functional.kl_div(
        changed.flatten(0, 1), original.flatten(0, 1), log_target=True, reduction="batchmean"
    )
    assert found["half"] == pytest.approx(float(expected), rel=1e-4)


def test_a_probe_needs_curves() -> None:
    with pytest.raises(UsageError, match="objective gac"):
        Options(probe=True, objective="gac")
