"""The refit stage: its closed form, its effect on a whole model, resuming, blocks and experts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from streaming import build

from snapfit.checkpoint.load import load
from snapfit.core.options import Options
from snapfit.core.progress import Silent
from snapfit.nn.linalg import whitened_basis
from snapfit.nn.observe import Seen
from snapfit.nn.refit import PairedInputs, corrected_weight, refit_pair, with_weights
from snapfit.pipeline import apply, compress, plan
from snapfit.pipeline.decide import decide
from snapfit.pipeline.job import Job
from snapfit.pipeline.refit import refit

TINY = Options(calib_tokens=2048, context=32, align=4, ratio=0.3, refit=True)


def drifting(tokens: int = 400, inputs: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of a dense model, and of a compressed one: mixed, shifted and noisy."""
    generator = torch.Generator().manual_seed(0)
    x_SN = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    mix_NN = torch.eye(inputs) + 0.2 * torch.randn(inputs, inputs, generator=generator)
    noise_SN = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    return x_SN, x_SN @ mix_NN.double() + 0.3 * noise_SN + 0.1


def moments(x_SN: torch.Tensor, other_SN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return other_SN.T @ other_SN / len(x_SN), (x_SN - other_SN).T @ other_SN / len(x_SN)


def weight(rows: int, inputs: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, inputs, generator=generator, dtype=torch.float64)


def test_the_whole_step_is_the_least_squares_solution():
    x_SN, other_SN = drifting()
    weight_MN = weight(7)
    solved_NM = torch.linalg.lstsq(other_SN, x_SN @ weight_MN.T).solution
    found_MN = corrected_weight(weight_MN, *moments(x_SN, other_SN), step=1.0, damping=0.0)
    torch.testing.assert_close(found_MN, solved_NM.T)


def test_the_damped_step_is_where_the_ridge_objective_has_no_gradient():
    x_SN, other_SN = drifting()
    weight_MN = weight(7)
    moment_NN, drift_NN = moments(x_SN, other_SN)
    found_MN = corrected_weight(weight_MN, moment_NN, drift_NN, step=1.0, damping=0.05)
    found_MN.requires_grad_()
    error = (x_SN @ weight_MN.T - other_SN @ found_MN.T).square().sum() / len(x_SN)
    ridge = 0.05 * moment_NN.diagonal().mean() * (found_MN - weight_MN).square().sum()
    (gradient_MN,) = torch.autograd.grad(error + ridge, found_MN)
    assert gradient_MN.abs().max() < 1e-10

    half_MN = corrected_weight(weight_MN, moment_NN, drift_NN, step=0.5, damping=0.05)
    torch.testing.assert_close(half_MN, (weight_MN + found_MN.detach()) / 2)


@pytest.mark.parametrize("rows", [7, 20])
def test_the_pair_is_the_best_of_its_rank(rows):
    """Against gradient descent from the solution and from elsewhere: nothing better is found."""
    x_SN, other_SN = drifting()
    moment_NN, drift_NN = moments(x_SN, other_SN)
    target_MN = corrected_weight(weight(rows), moment_NN, drift_NN, step=1.0, damping=0.0)
    root_MM = weight(rows, rows)
    fisher_MM = root_MM @ root_MM.T / rows + 0.1 * torch.eye(rows)

    def loss(a_RN: torch.Tensor, b_MR: torch.Tensor) -> torch.Tensor:
        error_MN = target_MN - b_MR @ a_RN
        return torch.trace(fisher_MM @ error_MN @ moment_NN @ error_MN.T)

    pair = refit_pair(target_MN, moment_NN, fisher_MM, 3)
    best = loss(*pair)
    for start in (pair, (weight(3), weight(rows, 3))):
        moving = [tensor.clone().requires_grad_() for tensor in start]
        optimizer = torch.optim.LBFGS(moving, max_iter=200, line_search_fn="strong_wolfe")

        def closure(moving=moving, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(*moving)
            value.backward()
            return value

        optimizer.step(closure)
        assert loss(*moving) >= best * (1 - 1e-9)
    assert loss(*moving).item() == pytest.approx(best.item(), rel=1e-3)


def test_without_drift_the_factors_are_the_plain_ones():
    x_SN, _ = drifting()
    moment_NN, drift_NN = moments(x_SN, x_SN)
    assert drift_NN.abs().max() == 0
    corrected_MN = corrected_weight(weight(7), moment_NN, drift_NN, step=0.5, damping=1e-2)
    a_RN, b_MR = refit_pair(corrected_MN, moment_NN, None, 3)
    plain = whitened_basis(weight(7), moment_NN=moment_NN, max_rank=3)
    torch.testing.assert_close(b_MR @ a_RN, plain.b_MR @ plain.a_RN)


def test_only_inputs_of_the_same_tokens_are_paired_and_shared_ones_once():
    x_SN, other_SN = (t.float() for t in drifting(8))

    def seen(x: torch.Tensor, expert_tokens: int) -> list[Seen]:
        half = x[:expert_tokens]
        return [
            Seen(module="q", source=0, x=x, y=x),
            Seen(module="k", source=0, x=x, y=x),
            Seen(module="expert", source=1, x=half, y=half),
            Seen(module="twice", source=2, x=x, y=x),
            Seen(module="twice", source=2, x=x, y=x),
        ]

    paired = PairedInputs(["q", "k", "expert", "twice", "absent"])
    paired.add(seen(x_SN, 8), seen(other_SN, 8), tokens=8)  # by chance the expert got all tokens
    paired.add(seen(x_SN, 8), seen(other_SN, 5), tokens=8)
    drifts = paired.drifts()
    assert list(drifts) == ["q", "k"]
    assert drifts["q"] is drifts["k"]
    moment_NN, drift_NN = drifts["q"].means()
    torch.testing.assert_close((moment_NN, drift_NN), moments(x_SN, other_SN))


def test_weights_are_put_back_even_after_a_failure():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2))
    before = layer[0].weight.detach().clone()

    def fail() -> None:
        with with_weights(layer, {"0.weight": torch.zeros(2, 3)}):
            assert layer[0].weight.abs().max() == 0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(layer[0].weight, before)


@torch.no_grad()
def output_error(dense: str | Path, compressed: Path, ids_BT: torch.Tensor) -> float:
    """Mean squared difference of the last hidden states."""
    states = [
        load(path, dtype=torch.float32).base_model(input_ids=ids_BT).last_hidden_state
        for path in (dense, compressed)
    ]
    return float((states[0] - states[1]).square().mean())


@pytest.mark.parametrize("model", ["llama", "embedded"])
def test_the_compressed_model_follows_the_dense_one_more_closely(model, tmp_path):
    name = "embedded" if model == "embedded" else str(build(model, tmp_path / "model"))
    options = replace(TINY, method="svd-llm", objective="none", ratio=0.4, align=None)
    options = replace(options, work=tmp_path / "work", calib_tokens=4096)
    for wanted in (False, True):
        compress(name, tmp_path / str(wanted), replace(options, refit=wanted))
    job = Job(model=name, options=options, progress=Silent())
    errors = [
        output_error(job.source.path, tmp_path / str(wanted), job.tokens.ids_BT)
        for wanted in (False, True)
    ]
    assert errors[1] < 0.97 * errors[0]


class StopAfter(Silent):
    """Progress that interrupts the refit after some layers, as a kill would."""

    def __init__(self, layers: int) -> None:
        self._left = layers
        self._active = False

    def stage(self, name: str, total: int) -> None:
        self._active = name == "refit"

    def advance(self, done: int = 1) -> None:
        self._left -= done if self._active else 0
        if self._active and self._left == 0:
            raise KeyboardInterrupt


def refit_files(work: Path) -> dict[str, dict[str, torch.Tensor]]:
    (folder,) = work.glob("refit-*")
    assert not (folder / "state").exists()
    return {path.name: load_file(path) for path in sorted(folder.iterdir())}


def test_an_interrupted_refit_goes_on_with_identical_results(tmp_path):
    model = str(build("llama", tmp_path / "model", dtype=torch.bfloat16))
    work = tmp_path / "work"
    compress(model, tmp_path / "straight", replace(TINY, work=work))
    straight = refit_files(work)
    assert len(straight) == 3
    shutil.rmtree(next(work.glob("refit-*")))

    for layers in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            compress(model, tmp_path / "out", replace(TINY, work=work), StopAfter(layers))
        (folder,) = work.glob("refit-*")
        assert len(list(folder.glob("layer_*"))) == layers
        assert [path.name for path in (folder / "state").iterdir()] == [
            f"hidden_00{layers}.safetensors"
        ]
    assert not (tmp_path / "out").exists()
    compress(model, tmp_path / "out", replace(TINY, work=work))
    resumed = refit_files(work)
    assert resumed.keys() == straight.keys()
    for name, tensors in straight.items():
        assert tensors.keys() == resumed[name].keys()
        assert all(torch.equal(tensors[key], resumed[name][key]) for key in tensors)


def test_a_lost_state_means_from_the_start(tmp_path):
    model = str(build("llama", tmp_path / "model"))
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        compress(model, tmp_path / "out", replace(TINY, work=work), StopAfter(2))
    (folder,) = work.glob("refit-*")
    shutil.rmtree(folder / "state")
    compress(model, tmp_path / "out", replace(TINY, work=work))
    assert len(refit_files(work)) == 3


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_blocks_of_rows_are_refit_each_with_its_own_rank(architecture, tmp_path):
    model = str(build(architecture, tmp_path / "model"))
    options = replace(TINY, method="palu", ratio=0.2, settings={"heads": "1"})
    options = replace(options, work=tmp_path / "work")
    report = compress(model, tmp_path / "out", options)
    assert report["params"]["compressed"] <= report["params"]["budget"]
    tensors: dict[str, torch.Tensor] = {}
    for file in refit_files(tmp_path / "work").values():
        tensors |= file
    job = Job(model=model, options=options, progress=Silent())
    sizes = decide(job).sizes
    factored = [group for group in job.space.groups if sizes[group.name] < group.full]
    assert {f"{group.name}/a" for group in factored} <= tensors.keys()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for group in factored:
        a_RN = tensors[f"{group.name}/a"]
        assert a_RN.shape == (sizes[group.name], group.matrices[0].cols)
        assert tensors[f"{group.name}/b"].shape == (group.matrices[0].rows, sizes[group.name])
        a_weight = stored[f"{group.matrices[0].name}.a.weight"]
        found = [i for i in range(len(a_weight)) if torch.equal(a_weight[i], a_RN[0])]
        assert len(found) == 1


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_experts_keep_their_factors_and_all_else_is_refit(architecture, tmp_path):
    model = str(build(architecture, tmp_path / "model"))
    options = replace(TINY, method="svd-llm", objective="none", align=None)
    options = replace(options, work=tmp_path / "work")
    report = compress(model, tmp_path / "out", options)
    assert report["ratio"]["linear"] >= 0.3
    job = Job(model=model, options=options, progress=Silent())
    decided = decide(job)
    pairs = refit(job, decided)
    refitted = {key for file in refit_files(tmp_path / "work").values() for key in file}
    moved = 0
    for group in job.space.groups:
        rank = decided.sizes[group.name]
        if rank < group.full:
            expert = ".experts." in group.name
            assert (f"{group.name}/a" in refitted) != expert
            plain = job.store.factors(group.layer, group.name, rank)
            found = pairs(group.layer, group.name, rank)
            moved += not torch.equal(found[0], plain[0])
            assert not expert or torch.equal(found[0], plain[0])
    assert moved > 0


def test_apply_follows_the_plan_and_a_method_without_data_can_be_refit(tmp_path):
    model = str(build("llama", tmp_path / "model"))
    options = replace(TINY, method="svd", objective="none", work=tmp_path / "work")
    plan(model, tmp_path / "plan.json", options)
    report = apply(tmp_path / "plan.json", tmp_path / "out", Options(work=tmp_path / "work"))
    assert report["stages"]["refit"]["seconds"] > 0
    assert report["calibration"]["tokens"] == 2048
    assert len(refit_files(tmp_path / "work")) == 3
