"""Calibration windows on disk, so that what a model generated need not be generated again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from snapfit.calib.tokens import Tokens
from snapfit.core.errors import CorruptFile
from snapfit.nn.tensorfile import open_tensors, save_tensors

if TYPE_CHECKING:
    from pathlib import Path


def save_windows(path: Path, tokens: Tokens) -> None:
    """Write `tokens` to a safetensors file, atomically.

    Raises:
        SnapfitError: the disk is full or the folder cannot be written.

    """
    facts = {
        "source": tokens.source,
        "requested": tokens.requested,
        "seen": tokens.seen,
        "notes": tokens.notes,
    }
    tensors = {"ids": tokens.ids_BT}
    if tokens.mask_BT is not None:
        tensors["mask"] = tokens.mask_BT
    save_tensors(path, tensors, {"facts": json.dumps(facts)})


def read_windows(path: Path) -> Tokens:
    """Read what `save_windows` wrote.

    Raises:
        SnapfitError: there is no such file.
        CorruptFile: it is not what `save_windows` writes.

    """
    with open_tensors(path) as stored:
        try:
            facts = json.loads((stored.metadata() or {})["facts"])
            ids_BT = stored.get_tensor("ids").clone()
            if ids_BT.ndim != 2 or ids_BT.dtype != torch.int64:
                raise ValueError(f"ids are {ids_BT.dtype} of {ids_BT.ndim} dimensions")
            mask_BT = None
            if "mask" in stored.keys():  # noqa: SIM118 - not a mapping
                mask_BT = stored.get_tensor("mask").clone()
                if mask_BT.shape != ids_BT.shape or mask_BT.dtype != torch.bool:
                    raise ValueError(f"the mask is {mask_BT.dtype} of shape {tuple(mask_BT.shape)}")
            return Tokens(
                ids_BT=ids_BT,
                source=str(facts["source"]),
                requested=int(facts["requested"]),
                seen=int(facts["seen"]),
                notes=tuple(facts["notes"]),
                mask_BT=mask_BT,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{path} holds no calibration tokens ({error}); delete it") from error
