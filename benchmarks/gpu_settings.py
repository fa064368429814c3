"""Where `gpu_llama3_8b.py` runs: the whole model on a GPU, or a tiny one on any CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llama3_8b_plan import CONFIG
from snapfit.core.candidates import AlignRule
from snapfit.core.target import Target
from snapfit.core.workload import Workload
from snapfit.hardware import resolve_target
from snapfit.hardware._live import LiveTimer
from snapfit.hardware.cpu import CpuClock
from whole_model import Runs

TABLES = {
    "A100": "a100_sxm", "H100": "h100_sxm", "H200": "h200_sxm", "B200": "b200_sxm", "L40S": "l40s",
}  # fmt: skip
"""Silicon tables by what a device's name contains."""

TINY = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is run where.

    Attributes:
        config: of the model.
        device: of torch.
        target: that plans are made for.
        planned: the workload of their latency budget.
        phases: what is measured.
        runs: how often.
        name: of the device, for people.

    """

    config: Mapping[str, Any]
    device: torch.device
    target: Target
    planned: Workload
    phases: Workload
    runs: Runs
    name: str


def full_setting(plan_target: str | None, runs: Runs) -> Setting:
    """Llama-3-8B in float16 on the first CUDA device."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible here; --tiny runs the same code on a CPU")
    name = torch.cuda.get_device_name()
    known = next((table for part, table in TABLES.items() if part in name), "cuda")
    prefill = [f"prefill:1x{2**i}" for i in range(7, 13)]
    decode = [f"decode:{2**i}x1024" for i in range(6)]
    return Setting(
        config={**CONFIG, "dtype": "float16"},
        device=torch.device("cuda"),
        target=resolve_target(plan_target or known, dtype="fp16"),
        planned=Workload.parse("prefill:1x1024"),
        phases=Workload.parse(",".join(prefill + decode)),
        runs=runs,
        name=name,
    )


def tiny_setting() -> Setting:
    """Two small layers in float32 on this CPU, timed for a moment each."""
    clock = CpuClock(1 << 20, least=0.002, most=0.01)
    # A CPU wants no multiples, and rounding to none would be no test of the code.
    rule = AlignRule(axis="rank", multiple=16, source="--tiny")
    target = Target(
        name="cpu", device="cpu", dtype="float32", rules=(rule,),
        timer=LiveTimer("cpu", "float32", clock),
    )  # fmt: skip
    return Setting(
        config={**CONFIG, **TINY, "dtype": "float32"},
        device=torch.device("cpu"),
        target=target,
        planned=Workload.parse("prefill:1x64"),
        phases=Workload.parse("prefill:1x16,prefill:1x64,decode:1x64,decode:4x64"),
        runs=Runs(warm_up=1, timed=5, trials=3),
        name=f"a CPU, threads: {torch.get_num_threads()}",
    )
