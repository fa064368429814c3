"""What benchmarks conclude from times, and the models that they time, where the truth is known."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from snapfit.core.operators import Estimate, Linear, Operator
from snapfit.core.workload import Workload
from snapfit.hardware.cuda import clocked
from snapfit.models.shapes import describe_shapes
from snapfit.nn.factored import FactoredLinear

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "dtype": "float32",
}


@pytest.fixture(name="sweeps")
def sweeps_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _benchmark("sweeps", monkeypatch)


@pytest.fixture(name="whole_model")
def whole_model_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _benchmark("whole_model", monkeypatch)


def _benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


class LawTimer:
    """Time grows with N; what is no multiple of 8 costs half as much again, a wave 128 more."""

    device, dtype = "law", "float32"

    def time(self, operator: Operator) -> Estimate:
        assert isinstance(operator, Linear)
        n = operator.n
        time = n * (1.0 if n % 8 == 0 else 1.5) + (128.0 if n > 512 else 0.0)
        return Estimate(microseconds=time, spread=0.001, source="measured", how="by law")


def swept(sweeps: ModuleType, timers: Iterator[Any]) -> tuple[Any, Any]:
    one = sweeps.Sweep(
        name="GEMM N",
        axis="N",
        sizes=tuple(range(448, 577)),
        operator=lambda n: Linear(m=1, n=n, k=8),
        fixed="",
    )
    return one, sweeps.run(timers, (one,), seconds=0.0, tell=lambda done, of: None)


def test_the_multiple_and_the_cliff_of_a_law_are_found(sweeps: ModuleType) -> None:
    one, passes = swept(sweeps, iter([LawTimer()]))
    assert set(passes[0]["GEMM N"]) == set(one.sizes)
    found = {tier.power: tier for tier in sweeps.tiers(passes, "GEMM N")}
    # Odd sizes win a little too: every second one lies beside a multiple of 8.
    assert max(power for power, tier in found.items() if tier.wins) == 4
    assert found[4].cost == pytest.approx(0.5, abs=0.01)
    assert found[8].cost == pytest.approx(0.0, abs=0.01)
    assert sweeps.wanted_multiple(list(found.values())) == 8
    times = sweeps.best(passes, "GEMM N")
    (cliff,) = sweeps.cliffs(times, step=8)
    assert (cliff.below, cliff.above) == (512, 520)
    assert cliff.rise == pytest.approx(128 / 512, abs=0.01)


def test_noise_is_no_multiple(sweeps: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)

    class Noisy(LawTimer):
        def time(self, operator: Operator) -> Estimate:
            jitter = 1 + 0.05 * float(torch.randn((), generator=generator))
            return Estimate(microseconds=100 * jitter, spread=0.05, source="measured", how="noise")

    _, passes = swept(sweeps, iter([Noisy()]))
    assert sweeps.wanted_multiple(sweeps.tiers(passes, "GEMM N")) == 1
    assert sweeps.cliffs(sweeps.best(passes, "GEMM N"), step=8) == []


def test_a_second_pass_gives_the_faster_time(sweeps: ModuleType) -> None:
    class Slow(LawTimer):
        def time(self, operator: Operator) -> Estimate:
            found = super().time(operator)
            return Estimate(
                microseconds=2 * found.microseconds, spread=0.0, source="measured", how="slow"
            )

    passes = [*swept(sweeps, iter([Slow()]))[1], *swept(sweeps, iter([LawTimer()]))[1]]
    best = sweeps.best(passes, "GEMM N")
    assert best[448].microseconds == 448
    assert best[448].spread == pytest.approx(1.0), "the passes differ by as much"


@pytest.mark.parametrize("large", [False, True])
def test_every_sweep_has_operators(sweeps: ModuleType, large: bool) -> None:
    found = sweeps.sweeps(large=large)
    assert len({sweep.name for sweep in found}) == len(found) == 9
    for sweep in found:
        assert list(sweep.sizes) == sorted(set(sweep.sizes))
        assert {sweep.operator(size).kind for size in sweep.sizes} <= {
            "linear",
            "attention",
            "elementwise",
        }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_random_models_have_the_sizes_of_a_plan(whole_model: ModuleType, folder: Path) -> None:
    space = describe_shapes(folder)
    ranks = {f"model.layers.{i}.self_attn.q_proj": 5 for i in range(2)}
    widths = {group.name: 33 for group in space.groups if group.kind == "width"}
    assert len(widths) == 2
    structure = whole_model.structure_of(space, ranks | widths)
    model = whole_model.random_model(folder, structure, torch.device("cpu"))
    for layer in model.model.layers:
        assert isinstance(layer.self_attn.q_proj, FactoredLinear)
        assert layer.self_attn.q_proj.a.weight.shape == (5, 32)
        assert layer.mlp.down_proj.weight.shape == (32, 33)
        assert layer.mlp.up_proj.weight.shape == (33, 32)
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))
    logits = model(torch.arange(6)[None]).logits
    assert logits.shape == (1, 6, 64)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_decoding_step_can_be_repeated(whole_model: ModuleType, folder: Path, dtype: str) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": dtype}))
    space = describe_shapes(folder)
    model = whole_model.random_model(
        folder, whole_model.structure_of(space, {}), torch.device("cpu")
    )
    (phase,) = Workload.parse("decode:2x9").phases
    call = whole_model.step(model, phase)
    with torch.inference_mode():
        first, second = call().logits, call().logits
    assert first.shape == (2, 1, 64)
    assert first.dtype == getattr(torch, dtype)
    assert torch.isfinite(first).all()
    assert torch.equal(first, second), "the cache is as long as it was"


def test_two_models_are_compared_side_by_side(
    whole_model: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial by trial the dense model first; a speed-up is a trial's own ratio of medians."""
    structure = whole_model.structure_of(describe_shapes(folder), {})
    dense, other = (
        whole_model.random_model(folder, structure, torch.device("cpu")) for _ in range(2)
    )
    times = iter([[3.0, 4.0, 9.0], [1.0, 2.0, 2.0], [6.0, 6.0, 6.0], [2.0, 2.0, 4.0]])
    ran: list[str] = []

    def known(call: Any, _device: object, runs: Any) -> list[float]:
        assert runs.timed == 3
        head = dense.lm_head.register_forward_hook(lambda *_: ran.append("dense"))
        heads = head, other.lm_head.register_forward_hook(lambda *_: ran.append("other"))
        with torch.inference_mode():
            assert call().logits.shape == (1, 1, 64)
        for hook in heads:
            hook.remove()
        return next(times)

    monkeypatch.setattr(whole_model, "_milliseconds", known)
    (phase,) = Workload.parse("prefill:1x8").phases
    runs = whole_model.Runs(warm_up=1, timed=3, trials=2)
    found = whole_model.compare(dense, other, phase, runs)
    assert ran == ["dense", "other", "dense", "other"]
    assert (found.dense_ms, found.ms) == (6.0, 2.0)
    assert found.speedup == pytest.approx((4 / 2 + 6 / 2) / 2)
    assert found.speedup_spread == pytest.approx((6 / 2 - 4 / 2) / 2)
    assert found.spread == 0.0


def test_a_pass_is_timed_as_often_as_asked(whole_model: ModuleType) -> None:
    calls: list[int] = []
    runs = whole_model.Runs(warm_up=2, timed=3, trials=1)
    times = whole_model._milliseconds(lambda: calls.append(0), torch.device("cpu"), runs)
    assert len(calls) == 5
    assert len(times) == 3
    assert all(time >= 0 for time in times)


def test_the_clock_counts_its_runs() -> None:
    calls: list[int] = []
    marks: list[int] = []

    class Mark:
        def record(self) -> None:
            self.at = len(calls)
            marks.append(self.at)

        def elapsed_time(self, later: Mark) -> float:
            return float(later.at - self.at)

    times = clocked(lambda: lambda: calls.append(0), Mark, lambda: None, warm_up=3, timed=4)
    assert times == [1.0] * 4
    assert len(calls) == 7
    assert marks == [3, 4, 4, 5, 5, 6, 6, 7]
