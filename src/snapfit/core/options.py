"""What a user may ask of one compression, checked before anything slow is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snapfit.core.errors import CorruptFile, UsageError
from snapfit.core.names import unknown_name

OBJECTIVES = ("curve", "gac", "round", "none")
BASES = ("linear", "model")
SCORES = ("magnitude", "activation", "gradient", "fisher")

DEFAULT_ALIGN = 16
"""Without --align and --target: the multiple that costs nothing on any GPU measured so far."""

RECIPE = {
    "method": str,
    "ratio": float,
    "of": str,
    "objective": str,
    "score": str,
    "calib": str,
    "calib_tokens": int,
    "context": int,
    "probe": bool,
    "refit": bool,
    "seed": int,
}
"""The options that decide what a compressed model is, with their types."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of `compress`, `plan` and `apply`.

    Attributes:
        method: a file of `snapfit.methods`.
        ratio: share of parameters to remove, in [0, 1).
        of: of which parameters: 'linear' (those that the method may touch) or 'model' (all).
        align: sizes must be multiples of this; None leaves it to `target`, or to DEFAULT_ALIGN.
        target: what the sizes must suit: a device name or a profile file.
        objective: how sizes are chosen; see `snapfit.core.objectives`.
        score: importance proxy of `gac` and `round`.
        calib: text file, JSONL file, `datasets` name, or 'self' (the model's own generations).
        calib_tokens: calibration tokens.
        context: tokens of a calibration window.
        eval_text: measure perplexity of both models on this text.
        eval_context: tokens of an evaluation window.
        eval_windows: evaluation windows, spread evenly over the text.
        probe: correct the curves by the divergence measured with one role truncated at a time,
            and plan again; needs the whole dense model in memory. For objective 'curve'.
        refit: re-estimate the factors on the compressed model's own activations: one more pass
            over the calibration tokens for every plan.
        settings: the method's own settings, as text.
        work: folder for everything that a rerun can reuse; None for the user's cache.
        seed: of sampled labels and generations.
        overwrite: replace an output that exists.
        trust_remote_code: allow the model's own Python code to run.

    Raises:
        UsageError: a value is out of range or unknown.

    """

    method: str = "kfac"
    ratio: float = 0.2
    of: str = "linear"
    align: int | None = None
    target: str | None = None
    objective: str = "curve"
    score: str = "fisher"
    calib: str = "self"
    calib_tokens: int = 24_576
    context: int = 512
    eval_text: Path | None = None
    eval_context: int = 512
    eval_windows: int = 32
    probe: bool = False
    refit: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    work: Path | None = None
    seed: int = 0
    overwrite: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise UsageError(
                f"ratio is the share of parameters to remove, from 0 to below 1; got {self.ratio}"
            )
        _one_of("of", self.of, BASES)
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("score", self.score, SCORES)
        for name in ("calib_tokens", "context", "eval_context", "eval_windows"):
            if getattr(self, name) < 2 - (name == "eval_windows"):
                raise UsageError(f"{name} is too small: {getattr(self, name)}")
        if self.probe and self.objective != "curve":
            raise UsageError(f"--probe corrects loss curves; --objective {self.objective} has none")
        if self.align is not None and not 1 <= self.align <= 4096:
            raise UsageError(f"align must be between 1 and 4096; got {self.align}")
        if self.align is not None and self.target is not None:
            raise UsageError("give either --align or --target, not both")
        if self.calib_tokens < self.context:
            raise UsageError(
                f"calib_tokens {self.calib_tokens} is less than one window of {self.context} tokens"
            )

    def recipe(self) -> dict[str, Any]:
        """What a plan must record so that `apply` can find or remake its ordered bases."""
        settings = {f"set.{key}": value for key, value in self.settings.items()}
        return {**{name: getattr(self, name) for name in RECIPE}, **settings}

    def with_recipe(self, recipe: Mapping[str, Any]) -> Options:
        """These options with a plan's recipe in place of their own.

        Raises:
            CorruptFile: an unknown or missing entry, or one of the wrong type.
            UsageError: a value out of range.
        """
        values: dict[str, Any] = {"settings": {}, "align": None, "target": None}
        for key, value in recipe.items():
            if key.startswith("set.") and isinstance(value, str):
                values["settings"][key.removeprefix("set.")] = value
            elif type(value) is RECIPE.get(key):
                values[key] = value
            else:
                raise CorruptFile(f"the plan's recipe has a bad entry: {key} = {value!r}")
        if missing := sorted(RECIPE.keys() - values.keys()):
            raise CorruptFile(f"the plan's recipe lacks: {', '.join(missing)}")
        return replace(self, **values)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(name, value, known)
