"""A model that can be asked, by any backend; what is costly is made when first used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.files import read_json
from snapfit.evals.choices import Chooser
from snapfit.evals.dialogue import Dialogue, find_delimiters
from snapfit.evals.generators.base import Generator
from snapfit.evals.generators.hf import TransformersGenerator
from snapfit.evals.generators.openai_server import ServerGenerator
from snapfit.evals.generators.vllm_engine import VllmGenerator
from snapfit.models.source import EMBEDDED, open_model

HF, VLLM, SERVER = "hf", "vllm", "openai:"
KEY = "OPENAI_API_KEY"


def device() -> str:
    """Where models run: the GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def model_folder(model: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of a model: as it is, of the embedded one, or fetched by its hub name.

    Raises:
        SnapfitError: there is no such model, or the folder holds none.

    """
    folder = Path(model)
    if model != EMBEDDED and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SnapfitError(f"{folder} has no config.json, so it is no model folder")
        return folder
    return open_model(model, trust_remote_code=trust_remote_code).path


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A checkpoint in a folder and the backend that runs it.

    Attributes:
        path: the checkpoint; of a server's model, the tokenizer is read from here.
        backend: 'hf', 'vllm', or 'openai:URL'.
        batch: rows at once, for 'hf'.
        dtype: of the weights; None for the checkpoint's own.
        served: name that a server knows the model by; None for its folder's.
        start: delimiter that opens thinking; None to find it.
        end: delimiter that closes it.
        trust_remote_code: allow the model's own Python code to run.

    """

    path: Path
    backend: str = HF
    batch: int = 16
    dtype: torch.dtype | None = None
    served: str | None = None
    start: str | None = None
    end: str | None = None
    trust_remote_code: bool = False

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)

    @cached_property
    def dialogue(self) -> Dialogue:
        """Its prompts and delimiters."""
        marks = find_delimiters(self.tokenizer, start=self.start, end=self.end)
        return Dialogue(self.tokenizer, marks)

    @cached_property
    def model(self) -> Any:
        """The model itself, loaded by transformers."""
        return load(
            self.path,
            dtype=self.dtype,
            device=device(),
            trust_remote_code=self.trust_remote_code,
        )

    @cached_property
    def eos(self) -> frozenset[int]:
        """Tokens that end a sequence, as the tokenizer and the checkpoint say: for any backend."""
        found = {self.tokenizer.eos_token_id}
        for name in ("generation_config.json", "config.json"):
            settings = read_json(self.path / name) if (self.path / name).exists() else {}
            told = settings.get("eos_token_id")
            found |= set(told if isinstance(told, list) else [told])
        return frozenset(token for token in found if isinstance(token, int))

    @cached_property
    def generator(self) -> Generator:
        """Generates, by the backend.

        Raises:
            SnapfitError: the backend is not installed or does not start.
            UsageError: there is no such backend.

        """
        if self.backend == HF:
            pad = self.tokenizer.pad_token_id
            return TransformersGenerator(
                self.model, eos=self.eos, pad=0 if pad is None else pad, batch=self.batch
            )
        if self.backend == VLLM:
            name = "auto" if self.dtype is None else str(self.dtype).removeprefix("torch.")
            return VllmGenerator(
                self.path,
                eos=self.eos,
                dtype=name,
                decode=self.dialogue.decode,
                trust_remote_code=self.trust_remote_code,
            )
        if self.backend.startswith(SERVER):
            return ServerGenerator(
                self.backend.removeprefix(SERVER),
                model=self.served or self.path.absolute().name,
                encode=lambda text: self.tokenizer.encode(text, add_special_tokens=False),
                decode=self.dialogue.decode,
                eos=self.eos,
                key=os.environ.get(KEY),
            )
        raise UsageError(f"unknown backend {self.backend!r}; it is hf, vllm or openai:URL")

    @cached_property
    def chooser(self) -> Chooser:
        """Scores choices; always with transformers, since servers do not score given text."""
        return Chooser(self.model, self.tokenizer, batch=self.batch)
