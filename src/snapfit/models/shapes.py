"""A model from its `config.json` alone: what could be made smaller, and what it would cost.

No weights are needed to count parameters or to predict times, so a plan for a large model can be
studied on a laptop that never holds it. The space is the same as `describe` gives for the whole
checkpoint, but its revision names no weights: a plan made from it applies to none.
"""

from __future__ import annotations

from pathlib import Path

import torch

from snapfit.core.errors import UsageError
from snapfit.core.files import digest_files
from snapfit.core.space import Space
from snapfit.models.describe import describe
from snapfit.models.shards import Shards
from snapfit.models.source import DTYPES, ModelSource, open_config

_PREFIX = "shapes-"


def open_shapes(folder: str | Path) -> ModelSource:
    """A source without weights, from a folder with a `config.json` or from that file itself.

    `describe` and `empty_model` take it as they take any other; nothing else does. Its dtype is
    what the configuration says, or bfloat16.

    Raises:
        UsageError: there is no such folder or file.
        SnapfitError: it is not a causal language model that snapfit can read.
        CorruptFile: the file is no valid configuration.

    """
    place = Path(folder).expanduser()
    if place.is_file():
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"no folder {str(folder)!r}; give one that has a config.json")
    config = open_config(place)
    dtype = next((known for known in DTYPES.values() if known == config.dtype), torch.bfloat16)
    config.dtype = dtype
    return ModelSource(
        path=place,
        config=config,
        revision=_PREFIX + digest_files([place / "config.json"]),
        architecture=str(config.model_type),
        dtype=dtype,
        shards=Shards(files=(), entries={}),
    )


def describe_shapes(folder: str | Path) -> Space:
    """The space of a model, from its configuration alone; errors as of `open_shapes`."""
    return describe(open_shapes(folder), name=str(folder))
