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
    save_tensors(path, {"ids": tokens.ids_BT}, {"facts": json.dumps(facts)})


def read_windows(path: Path) -> Tokens:
    """Read what `save_windows` wrote.

    Raises:
        SnapfitError: there is no such file.
        CorruptFile: it is not what `save_windows` writes.

    """
    with open_tensors(path) as stored:
        try:
            facts = json.loads(stored.metadata()["facts"])
            ids_BT: torch.Tensor = stored.get_tensor("ids").clone()
            facts["notes"] = tuple(facts["notes"])
            tokens = Tokens(ids_BT=ids_BT, **facts)
        except Exception as error:
            raise CorruptFile(
                f"{path} holds no calibration tokens ({error!r}); delete it"
            ) from error
    if ids_BT.ndim != 2 or ids_BT.dtype != torch.int64:
        raise CorruptFile(f"{path} holds no calibration tokens; delete it")
    return tokens
