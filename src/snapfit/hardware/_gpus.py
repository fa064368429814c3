"""GPUs that NVIDIA's `aiconfigurator-core` describes, and where it lies on this machine.

Peak rates and table files are read from that package in place; nothing of it is copied. What it
does not say is here: enabled multiprocessors and compute capability, as the driver reports them.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from snapfit.core.errors import SnapfitError

PACKAGE = "aiconfigurator_core"
INSTALL = "pip install 'snapfit[hardware]'"

# Multiprocessors, compute capability as 10 x major + minor.
_CHIPS = {
    "a100_sxm": (108, 80),
    "a100_pcie": (108, 80),
    "a30": (56, 80),
    "l4": (58, 89),
    "l40s": (142, 89),
    "h100_sxm": (132, 90),
    "h100_pcie": (114, 90),
    "h200_sxm": (132, 90),
    "b200_sxm": (148, 100),
    "gb200": (152, 100),
    "b300_sxm": (148, 103),
    "gb300": (152, 103),
    "rtx_pro_6000_server": (188, 120),
}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as `aiconfigurator-core` calls it.
        sms: multiprocessors.
        capability: compute capability, 10 x major + minor.
        flops: peak of dense half-precision tensor cores, operations a microsecond.
        flops8: the same of 8-bit floats; None if it has none.
        bandwidth: peak of its memory, bytes a microsecond.
        share: of the bandwidth that streaming kernels reach.
        pause: microseconds that a streaming kernel takes beside its traffic.
        data: the folder of its tables; may hold none.

    """

    name: str
    sms: int
    capability: int
    flops: float
    flops8: float | None
    bandwidth: float
    share: float
    pause: float
    data: Path


def systems() -> Path | None:
    """The folder of `aiconfigurator-core` that describes GPUs; None if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "systems"
    return folder if folder.is_dir() else None


def gpu_names() -> tuple[str, ...]:
    """GPUs whose chips we know: of the installed package, or all of them without it."""
    folder = systems()
    return tuple(n for n in _CHIPS if folder is None or (folder / f"{n}.yaml").is_file())


def capability_of(name: str) -> int:
    """Compute capability of one of `gpu_names()`, 10 x major + minor."""
    return _CHIPS[name][1]


@lru_cache(maxsize=32)
def read_gpu(name: str) -> Gpu:
    """The description of one of `gpu_names()`.

    Raises:
        SnapfitError: the package is not installed, or describes the GPU in another way.

    """
    folder = systems()
    if folder is None:
        raise SnapfitError(f"times of {name} come from NVIDIA's tables: {INSTALL}")
    yaml = extra("yaml")
    try:
        with (folder / f"{name}.yaml").open(encoding="utf-8") as file:
            data = yaml.safe_load(file)
        gpu: dict[str, Any] = data["gpu"]
        sms, capability = _CHIPS[name]
        flops8 = gpu.get("fp8_tc_flops")
        return Gpu(
            name=name,
            sms=sms,
            capability=capability,
            flops=gpu["bfloat16_tc_flops"] / 1e6,
            flops8=None if flops8 is None else flops8 / 1e6,
            bandwidth=gpu["mem_bw"] / 1e6,
            share=float(gpu["mem_bw_empirical_scaling_factor"]),
            pause=gpu["mem_empirical_constant_latency"] * 1e6,
            data=folder / data["data_dir"],
        )
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise SnapfitError(
            f"{folder / (name + '.yaml')} is not what this snapfit reads ({error!r}); "
            f"install the version that it was tested with: {INSTALL}"
        ) from error


def extra(module: str) -> Any:
    """A module that comes with the extra 'hardware'.

    Raises:
        SnapfitError: it is not installed; says how to.

    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SnapfitError(f"NVIDIA's tables need {module}: {INSTALL}") from error
