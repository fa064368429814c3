"""A finished run of `snapfit scaling`: its records, and the models that made them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.evals.dialogue import Delimiters, Dialogue
from snapfit.evals.records import Record, Thought, read_records
from snapfit.pipeline.respondent import device, model_folder


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A folder of `snapfit scaling`, and the models that answered.

    Attributes:
        folder: of the run.
        settings: what was asked.
        trust_remote_code: allow the models' own Python code to run.

    """

    folder: Path
    settings: Mapping[str, Any]
    trust_remote_code: bool

    def place(self, model: str) -> Path:
        """The folder of one of its models."""
        path = self.settings["paths"][model]
        return model_folder(path, trust_remote_code=self.trust_remote_code)

    def dialogue(self, model: str) -> Dialogue:
        """How a model was asked."""
        tokenizer = load_tokenizer(self.place(model), trust_remote_code=self.trust_remote_code)
        return Dialogue(tokenizer, Delimiters(**self.settings["delimiters"][model]))

    def loaded(self, model: str) -> Any:
        """The model itself."""
        return load(self.place(model), device=device(), trust_remote_code=self.trust_remote_code)

    def records(self, model: str, task: str) -> list[Record]:
        """What a model said to a task."""
        return list(read_records(self.folder / model / f"{task}.jsonl"))

    def thoughts(self, model: str, task: str) -> list[Thought]:
        """What a model thought about a task."""
        return [record for record in self.records(model, task) if isinstance(record, Thought)]

    @property
    def generated(self) -> list[str]:
        """The tasks that were thought about."""
        tasks = self.settings["tasks"].items()
        return [name for name, task in tasks if task["kind"] == "generate"]
