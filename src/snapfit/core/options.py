"""What a user may ask of one compression, checked before anything slow is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snapfit.core.errors import CorruptFile, UsageError
from snapfit.core.names import unknown_name
from snapfit.core.workload import Workload

OBJECTIVES = ("curve", "gac", "round", "none")
BASES = ("linear", "model")
SCORES = ("magnitude", "activation", "gradient", "fisher")
FORMATS = ("factored", "stock", "decilm", "standalone", "folded")
TEMPLATES = ("none", "thinking")
REQUIREMENTS = ("keeps-reasoning",)
MIXED = "kfac+minitron+shortgpt"
"""What `--method mixed` stands for."""

DEFAULT_RATIO = 0.2

DEFAULT_ALIGN = 16
"""Without --align and --target: the multiple that costs nothing on any GPU measured so far."""

RECIPE = {
    "method": str,
    "format": str,
    "of": str,
    "objective": str,
    "score": str,
    "calib": str,
    "calib_template": str,
    "calib_tokens": int,
    "context": int,
    "probe": bool,
    "refit": bool,
    "seed": int,
}
"""The options that decide what a compressed model is, with their types."""

SIZE = {"ratio": float, "layers": int, "budget": str, "workload": str}
"""How much is to go: those that were asked for are in the recipe too."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of `compress`, `plan` and `apply`.

    Attributes:
        method: a file of `snapfit.methods`, several joined by '+', or 'mixed'.
        ratio: share of parameters to remove, in [0, 1); None leaves it to `layers` or `budget`,
            or to DEFAULT_RATIO.
        layers: for methods that remove layers: how many to remove.
        budget: what to keep of the dense model, e.g. 'latency=0.8' or 'params=0.8,kv=0.5'.
        workload: what latency is the latency of, e.g. 'prefill:1x1024,decode:8x2048'.
        format: what the checkpoint is to be; a plan holds only what its format can.
        of: of which parameters: 'linear' (those that the method may touch) or 'model' (all).
        align: sizes must be multiples of this; None leaves it to `target`, or to DEFAULT_ALIGN.
        target: what the sizes must suit: a device name or a profile file.
        objective: how sizes are chosen; see `snapfit.core.objectives`.
        score: importance proxy of `gac` and `round`.
        calib: text file, JSONL file, `datasets` name, or 'self' (the model's own generations);
            several with weights, e.g. 'wiki.txt*0.5+self*0.5'.
        calib_template: 'thinking' makes 'self' generate answers, with the model's chat template;
            only what it generates counts.
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
        check: ask the compressed model and its original to reason, and report the verdict.
        require: one of REQUIREMENTS: the job fails where it does not hold; implies `check`.
        trust_remote_code: allow the model's own Python code to run.

    Raises:
        UsageError: a value is out of range or unknown.

    """

    method: str = "kfac"
    ratio: float | None = None
    layers: int | None = None
    budget: str | None = None
    workload: str | None = None
    format: str = "factored"
    of: str = "linear"
    align: int | None = None
    target: str | None = None
    objective: str = "curve"
    score: str = "fisher"
    calib: str = "self"
    calib_template: str = "none"
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
    check: bool = False
    require: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.removed < 1:
            raise UsageError(
                f"ratio is the share of parameters to remove, from 0 to below 1; got {self.ratio}"
            )
        asked = [name for name in ("ratio", "layers", "budget") if getattr(self, name) is not None]
        if len(asked) > 1:
            raise UsageError(f"give one of --{' and --'.join(asked)}: each says how much is to go")
        if self.layers is not None and self.layers < 0:
            raise UsageError(f"layers is how many to remove, 0 or more; got {self.layers}")
        if self.workload is not None:
            Workload.parse(self.workload)
        _one_of("format", self.format, FORMATS)
        _one_of("calib_template", self.calib_template, TEMPLATES)
        _one_of("of", self.of, BASES)
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("score", self.score, SCORES)
        if self.require is not None:
            _one_of("require", self.require, REQUIREMENTS)
        for name in ("calib_tokens", "context", "eval_context", "eval_windows"):
            if getattr(self, name) < 2 - (name == "eval_windows"):
                raise UsageError(f"{name} is too small: {getattr(self, name)}")
        if not -(1 << 63) <= self.seed < 1 << 63:
            raise UsageError(f"seed is a whole number of at most 63 bits; got {self.seed}")
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

    @property
    def checks(self) -> bool:
        """Whether the compressed model is asked to reason."""
        return self.check or self.require is not None

    @property
    def mixes(self) -> bool:
        """Whether several methods compete."""
        return self.method == "mixed" or "+" in self.method

    @property
    def removed(self) -> float:
        """Share of parameters to remove."""
        return DEFAULT_RATIO if self.ratio is None else self.ratio

    def recipe(self) -> dict[str, Any]:
        """What a plan must record so that `apply` can find or remake its ordered bases."""
        settings = {f"set.{key}": value for key, value in self.settings.items()}
        asked = {name: getattr(self, name) for name in SIZE if getattr(self, name) is not None}
        return {**{name: getattr(self, name) for name in RECIPE}, **asked, **settings}

    def with_recipe(self, recipe: Mapping[str, Any]) -> Options:
        """These options with a plan's recipe in place of their own.

        Raises:
            CorruptFile: an unknown or missing entry, or one of the wrong type.
            UsageError: a value out of range.
        """
        values: dict[str, Any] = {"settings": {}, "align": None, "target": None}
        values |= dict.fromkeys(SIZE)
        for key, value in recipe.items():
            kind = (RECIPE | SIZE).get(key)
            if key.startswith("set.") and isinstance(value, str):
                values["settings"][key.removeprefix("set.")] = value
            elif type(value) is kind or (kind is float and type(value) is int):  # JSON's 0 is 0.0
                values[key] = value
            else:
                raise CorruptFile(f"the plan's recipe has a bad entry: {key} = {value!r}")
        if missing := sorted(RECIPE.keys() - values.keys()):
            raise CorruptFile(f"the plan's recipe lacks: {', '.join(missing)}")
        return replace(self, **values)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(name, value, known)
