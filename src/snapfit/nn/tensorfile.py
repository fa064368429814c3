"""Tensor files that exist whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically.

    Raises:
        SnapfitError: the disk is full or the folder cannot be written.

    """
    with atomic_path(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contiguous, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:  # the library wraps "disk full" in its own class
            raise SnapfitError(
                f"cannot write {path}: {error}; free space or choose another place, then rerun"
            ) from error


def open_tensors(path: Path) -> safe_open:
    """Open a safetensors file for reading tensor by tensor; use as a context manager.

    Raises:
        SnapfitError: there is no such file.
        CorruptFile: the file is truncated or no safetensors file.

    """
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise SnapfitError(f"no such file: {path}") from error
    except (SafetensorError, OSError) as error:
        raise CorruptFile(
            f"{path} is not a readable safetensors file ({error}); copy it again, or delete it "
            "and rerun what wrote it"
        ) from error
