"""Measuring on the device at hand: what is called, on which buffers, and what is made of it."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.operators import Attention, Elementwise, Launch, Linear, Operator
from snapfit.hardware import cpu, cuda, resolve_target
from snapfit.hardware._calls import Buffers, attention_backend, build
from snapfit.hardware._live import LiveTimer, Samples

SMALL = 1 << 14
LINEAR = Linear(m=4, n=24, k=16)
PREFILL = Attention(batch=2, query=8, context=8, heads=4, kv_heads=2, head_dim=16)
DECODE = Attention(batch=2, query=1, context=9, heads=4, kv_heads=2, head_dim=16)


@pytest.fixture
def buffers() -> Buffers:
    return Buffers("cpu", "float32", SMALL)


@pytest.fixture
def quick() -> cpu.CpuClock:
    return cpu.CpuClock(SMALL, least=0.001, most=0.005)


def test_copies_fill_the_pool_and_do_not_overlap(buffers: Buffers) -> None:
    copies = buffers.copies(24, 16)
    assert len(copies) == SMALL // 4 // 384
    starts = [copy.data_ptr() for copy in copies]
    assert all(b - a >= 24 * 16 * 4 for a, b in itertools.pairwise(starts))
    assert all((start - starts[0]) % 256 == 0 for start in starts)
    assert all(torch.isfinite(copy).all() and copy.std() > 0 for copy in copies)


def test_what_is_larger_than_the_pool_has_two_copies(buffers: Buffers) -> None:
    first, second = buffers.copies(SMALL, 2)
    assert first.data_ptr() != second.data_ptr()


def test_calls_go_round_over_all_copies(buffers: Buffers) -> None:
    made = build(LINEAR, buffers)
    results = [call() for call in made.calls]
    assert all(isinstance(y, torch.Tensor) and y.shape == (4, 24) for y in results)
    assert not torch.equal(results[0], results[1])  # type: ignore[arg-type]
    assert f"{len(made.calls)} weights" in made.how


def test_activations_go_round_and_reads_are_never_written(
    buffers: Buffers, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, writes = buffers.inputs(4, 16), buffers.outputs(4, 16)
    assert len(reads) == len(writes) > 1
    assert {x.data_ptr() for x in reads}.isdisjoint(y.data_ptr() for y in writes)
    before = [x.clone() for x in reads]
    product = build(LINEAR, buffers)
    for call in product.calls:
        call()
    build(Elementwise(elements=600, ops=3), buffers).calls[0]()
    assert all(torch.equal(x, then) for x, then in zip(reads, before, strict=True))
    multiply, found = torch.mm, []

    def kept(x_MK: torch.Tensor, w_KN: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        found.append((multiply(x_MK, w_KN, out=out), torch.nn.functional.linear(x_MK, w_KN.t())))
        return out

    monkeypatch.setattr(torch, "mm", kept)
    product.calls[1]()
    torch.testing.assert_close(*found[0])


@pytest.mark.parametrize("operator", [PREFILL, DECODE])
def test_attention_is_what_the_operator_says(operator: Attention, buffers: Buffers) -> None:
    made = build(operator, buffers)
    y_BHQD = made.calls[0]()
    assert isinstance(y_BHQD, torch.Tensor)
    assert y_BHQD.shape == (2, 4, operator.query, 16)
    assert "flash backend" in made.how


def test_prefill_is_causal_and_shares_heads(buffers: Buffers) -> None:
    made = build(PREFILL, buffers)
    y_BHQD = made.calls[0]()
    kv_2BSGD = buffers.copies(2, 2, 8, 2, 16)[0]
    v_BGSD = kv_2BSGD[1].transpose(1, 2)
    # The first token sees only itself: its output is its own value, of the shared head.
    for head in range(4):
        assert torch.allclose(y_BHQD[:, head, 0], v_BGSD[:, head // 2, 0])  # type: ignore[index]


def test_backend_is_seen_and_not_assumed() -> None:
    q_BHQD = torch.randn(1, 2, 8, 16)

    def call() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q_BHQD, q_BHQD, q_BHQD)

    assert attention_backend(call) == "flash"
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_backend(call) == "math"
    with torch.inference_mode():
        assert attention_backend(call) == "flash"
    assert attention_backend(lambda: q_BHQD + 1) == "unknown"


def test_elementwise_moves_its_elements(buffers: Buffers, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    multiply = torch.mul

    def counted(x: torch.Tensor, y: float, *, out: torch.Tensor) -> torch.Tensor:
        moved.append(x.numel() + out.numel())
        assert x.data_ptr() != out.data_ptr()
        return multiply(x, y, out=out)

    monkeypatch.setattr(torch, "mul", counted)
    build(Elementwise(elements=600, ops=3), buffers).calls[0]()
    assert moved == [200, 200, 200]


def test_too_little_memory_is_said(buffers: Buffers, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*shape: int) -> torch.Tensor:
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(buffers, "fresh", full)
    with pytest.raises(SnapfitError, match="too little memory here to time linear M 4 N 24 K 16"):
        build(LINEAR, buffers)


def test_too_little_memory_for_a_result_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a product allocates what it writes, so that building alone would not tell."""

    def full(x_MK: torch.Tensor, w_NK: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes")

    monkeypatch.setattr(torch.nn.functional, "linear", full)
    with pytest.raises(SnapfitError, match="too little memory here to time linear M 4 N 24 K 16"):
        build(LINEAR, Buffers("meta", "float32", SMALL))


@pytest.mark.parametrize(
    "operator", [LINEAR, PREFILL, DECODE, Elementwise(elements=64), Launch()], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cpu_measures_every_operator(operator: Operator, dtype: str, quick: cpu.CpuClock) -> None:
    found = LiveTimer("cpu", dtype, quick).time(operator)
    assert found.source == "measured"
    assert found.microseconds > 0
    assert found.spread >= 0
    assert "thread" in found.how


def test_the_cpu_says_what_its_times_depend_on(quick: cpu.CpuClock) -> None:
    software = LiveTimer("cpu", "float32", quick).software()
    assert torch.__version__ in software
    assert f"{torch.get_num_threads()} threads" in software


def test_estimate_is_the_median_and_half_the_interquartile_range() -> None:
    samples = Samples(microseconds=[10.0, 11.0, 12.0, 13.0, 100.0], how="x")
    found = samples.estimate()
    assert found.microseconds == 12.0
    assert found.spread == pytest.approx((13 - 11) / 2 / 12)


class Event:
    """A CUDA event of a device whose calls take 2, 3, 4, ... milliseconds."""

    now = 0.0

    def __init__(self) -> None:
        self.at = -1.0

    def record(self) -> None:
        self.at = Event.now

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


def test_cuda_harness_times_each_call_after_warming_up() -> None:
    Event.now = 0.0
    waits: list[float] = []
    done: list[int] = []

    def following() -> Any:
        def call() -> None:
            done.append(len(done))
            Event.now += 2 + len(done) % 3

        return call

    times = cuda.clocked(following, Event, lambda: waits.append(Event.now))
    assert len(done) == cuda.WARM_UP + cuda.TIMED
    assert times == [2 + (cuda.WARM_UP + 1 + i) % 3 for i in range(cuda.TIMED)]
    assert len(waits) == 2, "one wait before the timed calls, one before times are read"
    assert waits[1] == Event.now


def test_no_cuda_device_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    with pytest.raises(SnapfitError, match="no CUDA device is visible here; name a GPU of the tab"):
        resolve_target("cuda")


@pytest.mark.parametrize(
    ("line", "multiple", "alien"),
    [
        ("NVIDIA A100, 8.0", 16, "machete"),
        ("NVIDIA H100, 9.0", 8, "nvfp4"),
        ("X B200, 10.0", 8, "machete"),
        ("X, 12.0", 16, "machete"),
    ],
)
def test_cuda_device_by_nvidia_smi(
    line: str, multiple: int, alien: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{line}'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(cuda.shutil, "which", lambda name: str(tool))
    target = resolve_target("cuda")
    assert target.device == line.partition(",")[0]
    assert target.rank_multiple == multiple
    assert ("not measured" in target.rules[0].source) == (line[0] == "X")
    with pytest.raises(UsageError, match="does not run on"):
        resolve_target(f"cuda,quant={alien}")


def test_cuda_without_cuda_builds_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SnapfitError, match="sees no CUDA device"):
        cuda.CudaClock("any").samples(Launch(), "float16")


def test_another_device_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "B")
    with pytest.raises(SnapfitError, match="torch takes the B first, nvidia-smi the A"):
        cuda.CudaClock("A").samples(Launch(), "float16")


def test_failing_nvidia_smi_is_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.shutil, "which", lambda name: "nvidia-smi")
    failed = subprocess.CompletedProcess([], returncode=9, stdout="couldn't communicate, 8.0")
    monkeypatch.setattr(cuda.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SnapfitError, match="no CUDA device"):
        resolve_target("cuda")


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("nvidia-smi", 20), OSError("gone")])
def test_hanging_nvidia_smi_is_no_device(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(cuda.shutil, "which", lambda name: "nvidia-smi")
    monkeypatch.setattr(cuda.subprocess, "run", hang)
    with pytest.raises(SnapfitError, match="no CUDA device"):
        resolve_target("cuda")
