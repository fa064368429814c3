"""GPUs that NVIDIA measured: times from its tables, and a physical model between their points.

The tables are those of the PyPI package `aiconfigurator-core`, read in place when a timer is first
asked. What lies between their points is modelled: tiles and waves (`_tiles`, `_gemm`), kernel
tiers (`_tiers`), attention templates (`_attention`), peak rates. Times are of kernels as an engine
replays them, without the work of the host. Without the package only the rules are known.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from snapfit.core.errors import UsageError
from snapfit.core.operators import Attention, Elementwise, Estimate, Linear, Operator
from snapfit.core.target import Target
from snapfit.hardware._attention import AttentionModel
from snapfit.hardware._gemm import GemmModel
from snapfit.hardware._gpus import INSTALL, Gpu, capability_of, gpu_names, read_gpu, systems
from snapfit.hardware._tables import DTYPES, software_of
from snapfit.hardware._tiers import tiers_of
from snapfit.hardware._tiles import generation

STREAM_ERROR = 0.25
"""Norms and the like at peak rates: a cache may hold what they read, an engine may fuse them."""


def names() -> tuple[str, ...]:
    """The GPUs that can be asked for."""
    return gpu_names()


def find(name: str) -> Target | None:
    """One of them: its rules, and its times if NVIDIA's package is installed."""
    if name not in gpu_names():
        return None
    capability = capability_of(name)
    rules = Target(
        name=name,
        device=name,
        dtype="float16",
        rules=tiers_of(capability).rules(name),
        capability=capability,
    )
    folder = systems()
    if folder is None:
        note = f"only the rules of {name} are known; its times are in NVIDIA's tables: {INSTALL}"
        return replace(rules, notes=(note,))
    software = software_of(folder / "data" / name)
    if not software:
        note = f"NVIDIA publishes no measured products of {name}"
        return replace(
            rules, timer=SiliconTimer(name), times="modelled from peak rates", notes=(note,)
        )
    times = f"NVIDIA's tables ({software}), modelled between their points"
    return replace(rules, timer=SiliconTimer(name), times=times, software=software)


class SiliconTimer:
    """How long operators take on one GPU; reads its tables when it is first asked.

    Attributes:
        device: the GPU's name.
        dtype: 'float16', 'bfloat16' or 'float8' (attention is in half precision even then).

    """

    def __init__(self, device: str, dtype: str = "float16") -> None:
        self.device = device
        self.dtype = dtype
        self._known: dict[Operator, Estimate] = {}

    def time(self, operator: Operator) -> Estimate:
        """The time of one operator: of its kernels, without the work of the host.

        Raises:
            SnapfitError: NVIDIA's package is not installed or not readable, or the GPU does not
                compute in that format.

        """
        found = self._known.get(operator)
        if found is None:
            found = self._known[operator] = self._time(operator)
        return found

    def with_dtype(self, dtype: str) -> SiliconTimer:
        """The same GPU's timer for weights and activations of `dtype`, a name of torch.

        Raises:
            UsageError: the tables hold nothing of that type; names those that they hold.

        """
        name = "float8" if dtype.startswith("float8") else dtype
        if name not in DTYPES:
            raise UsageError(
                f"NVIDIA's tables of {self.device} are of {', '.join(DTYPES)}, not of {dtype!r}"
            )
        return SiliconTimer(self.device, name)

    def _time(self, operator: Operator) -> Estimate:
        if isinstance(operator, Linear):
            return self._products.time(operator)
        if isinstance(operator, Attention):
            return self._attention.time(operator)
        if isinstance(operator, Elementwise):
            return self._stream(operator)
        return self._launch

    def _stream(self, operator: Elementwise) -> Estimate:
        gpu = self._gpu
        traffic = operator.bytes(2) / (gpu.bandwidth * gpu.share)
        return Estimate(
            microseconds=operator.ops * gpu.pause + traffic,
            spread=STREAM_ERROR,
            source="model",
            how=f"{gpu.share:.0%} of the memory bandwidth of {gpu.name}, {gpu.pause:g} us a kernel",
        )

    @cached_property
    def _gpu(self) -> Gpu:
        return read_gpu(self.device)

    @cached_property
    def _products(self) -> GemmModel:
        return GemmModel.of(self._gpu, self.dtype)

    @cached_property
    def _attention(self) -> AttentionModel:
        return AttentionModel(gpu=self._gpu)

    @cached_property
    def _launch(self) -> Estimate:
        table = self._products.table
        if table is None:
            return Estimate(
                microseconds=generation(self._gpu.capability).launch,
                spread=STREAM_ERROR,
                source="model",
                how=f"as on other GPUs of the generation of {self.device}",
            )
        return Estimate(
            microseconds=float(np.nanmin(table.times_mnk)),
            spread=0.1,
            source="table",
            how=f"{table.label}, its smallest product",
        )
