"""Finding targets: every file of this folder, and every entry point of 'snapfit.hardware'.

A target is written NAME[,tp=N][,quant=Q][,group=G][,engine=E][,format=F]: a device, 'cpu', 'cuda'
or the file of a saved profile, and what runs on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import fields, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

import snapfit.hardware
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.names import plugin_files, unknown_name
from snapfit.core.stack import Stack
from snapfit.core.target import Target
from snapfit.hardware.base import DtypeTimer, TargetKind

ENTRY_POINTS = "snapfit.hardware"

_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def target_kinds() -> dict[str, TargetKind]:
    """Every kind of target by its name, ours first.

    Raises:
        SnapfitError: an installed package's entry point cannot be loaded.

    """
    kinds = {
        name: cast("TargetKind", importlib.import_module(f"snapfit.hardware.{name}"))
        for name in plugin_files(snapfit.hardware.__path__)
    }
    return kinds | {point.name: _load(point) for point in entry_points(group=ENTRY_POINTS)}


def target_names() -> tuple[str, ...]:
    """Devices that can be asked for by name, each once."""
    names = (name for kind in target_kinds().values() for name in kind.names())
    return tuple(dict.fromkeys(names))


def resolve_target(text: str, *, dtype: str | None = None) -> Target:
    """The target that `text` describes: a device or the file of a profile, and its stack.

    Nothing is measured and no table is read until the target's timer is asked.

    Args:
        text: NAME[,tp=N][,quant=Q][,group=G][,engine=E][,format=F].
        dtype: of weights and activations, 'fp16' and 'float16' alike; None: the device's usual one.

    Raises:
        UsageError: no device is called that, or the stack is none, or does not go with the device;
            or the device's times are of another data type.
        SnapfitError: the file does not exist or holds no profile.

    """
    name, _, rest = text.partition(",")
    stack = parse_stack(rest.split(",")) if rest else Stack()
    found = [device for kind in target_kinds().values() if (device := kind.find(name)) is not None]
    if not found:
        unknown = unknown_name("target", name, target_names())
        raise UsageError(f"{unknown}; or name a saved profile such as ./profile.json")
    return _in_dtype(_merged(found), dtype).with_stack(stack)


def parse_stack(parts: Iterable[str]) -> Stack:
    """A stack from 'tp=2', 'quant=marlin', 'engine=vllm' and the like.

    Raises:
        UsageError: a part is no KEY=VALUE, its key is unknown or given twice, or its value is.

    """
    known = [field.name for field in fields(Stack)]
    given: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.strip().partition("=")
        if not equals or not value:
            raise UsageError(
                f"a target is NAME[,tp=N][,quant=Q][,group=G][,engine=E][,format=F]; "
                f"{part!r} is no KEY=VALUE"
            )
        if key not in known:
            raise unknown_name("part of a target", key, known)
        if key in given:
            raise UsageError(f"the target gives {key} twice")
        given[key] = value
    if "tp" in given:
        if not given["tp"].isdecimal():
            raise UsageError(f"tp={given['tp']}: tensor parallel takes a number of devices")
        given["tp"] = int(given["tp"])
    return Stack(**given)


def _merged(found: list[Target]) -> Target:
    """What the kinds that know a device say of it; the earlier one wins."""
    first, *others = found
    for other in others:
        first = replace(
            first,
            rules=first.rules or other.rules,
            timer=first.timer or other.timer,
            times=first.times if first.timer else other.times,
            software=first.software or other.software,
            capability=first.capability or other.capability,
            notes=tuple(dict.fromkeys(first.notes + other.notes)),
        )
    return first


def _in_dtype(target: Target, dtype: str | None) -> Target:
    """The target with a timer of this data type.

    Raises:
        UsageError: its timer has only its own.

    """
    wanted = _DTYPES.get(dtype, dtype) if dtype else target.dtype
    if wanted == target.dtype:
        return target
    if target.timer is None:
        return replace(target, dtype=wanted)
    if not isinstance(target.timer, DtypeTimer):
        raise UsageError(f"{target.name} holds times in {target.dtype} only, not in {wanted!r}")
    timer = target.timer.with_dtype(wanted)
    return replace(target, dtype=timer.dtype, timer=timer)


def _load(point: EntryPoint) -> TargetKind:
    try:
        return cast("TargetKind", point.load())
    except (ImportError, AttributeError) as error:
        raise SnapfitError(
            f"the hardware plug-in {point.name!r} ({point.value}) cannot be loaded: {error}; "
            "repair or uninstall the package that brought it"
        ) from error
