"""Measure a checkpoint as it stands, compressed or not."""

from __future__ import annotations

from pathlib import Path

import torch

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.progress import Progress
from snapfit.core.report import Metric
from snapfit.evals.perplexity import perplexity, read_text
from snapfit.models.source import EMBEDDED, open_model


def measure_perplexity(
    model: str,
    text: Path,
    *,
    context: int = 512,
    windows: int = 32,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Metric:
    """Perplexity of `model` on the text in a file, computed in float32.

    Args:
        model: folder of any checkpoint, hub name, or 'embedded'.
        text: UTF-8 file.
        context: tokens of a window.
        windows: how many, spread evenly.
        trust_remote_code: allow the model's own Python code to run.
        progress: told of every window.

    Raises:
        SnapfitError: the model or the text cannot be read, or they do not fit together.

    """
    content = read_text(text)
    folder = Path(model)
    if model == EMBEDDED or not folder.is_dir():
        folder = open_model(model, trust_remote_code=trust_remote_code).path
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    loaded = load(folder, dtype=torch.float32, trust_remote_code=trust_remote_code)
    return perplexity(
        loaded,
        tokenizer,
        content,
        context=context,
        windows=windows,
        source=text.name,
        progress=progress,
    )
