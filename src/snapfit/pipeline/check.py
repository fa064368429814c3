"""A small test-time-scaling check of a model that was just compressed: does it still reason?

The embedded model is asked what it was trained on, facts and chains. Others are asked chains of
sums and counts of reasoning-gym, at two lengths. Nothing is fetched, so what they know is not
asked: knowledge benchmarks are on the hub. `snapfit scaling` asks more, and more of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfit.checkpoint.load import load_tokenizer
from snapfit.core.files import read_json
from snapfit.core.names import unknown_name
from snapfit.core.options import REQUIREMENTS
from snapfit.core.progress import Progress
from snapfit.core.report import Metric, Plain
from snapfit.core.verdict import KEEPS, UNKNOWN
from snapfit.evals.dialogue import find_delimiters
from snapfit.evals.procedural import vocabulary
from snapfit.evals.thinking import Sampling
from snapfit.pipeline.respondent import model_folder
from snapfit.pipeline.scaling import ScalingOptions, scaling
from snapfit.viz.pages import write_scaling_page

PAGE = "scaling.html"

PROMPT_TOKENS = 256
"""Room that is left for a problem; the longest here have half of that."""

LEAST_BUDGET = 64
"""With fewer thinking tokens nothing is worth asking."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked of a kind of model.

    Attributes:
        tasks: see `load_task`.
        limit: problems a task.
        budgets: thinking tokens.
        answer_tokens: most tokens of an answer.
        batch: problems at once.
        note: what the reader of the verdict should know.

    """

    tasks: tuple[str, ...]
    limit: int
    budgets: tuple[int, ...]
    answer_tokens: int
    batch: int
    note: str


_EMBEDDED = Questions(
    tasks=("embedded:facts", "embedded:short", "embedded:long"),
    limit=96,
    budgets=(96, 160),
    answer_tokens=8,
    batch=96,  # a step of so small a model costs the same for many rows as for few
    note="asked what the embedded model was trained on",
)
_TASKS = (
    "shallow=reasoning-gym:chain_sum:min_terms=2+max_terms=3+min_digits=1+max_digits=2",
    "long=reasoning-gym:chain_sum:min_terms=8+max_terms=12+min_digits=1+max_digits=2",
    "long=reasoning-gym:leg_counting",
)
_NOTE = "knowledge was not asked, since its benchmarks are on the hub; see snapfit scaling"
_THINKING = Questions(
    tasks=_TASKS, limit=40, budgets=(512, 2048), answer_tokens=128, batch=16, note=_NOTE
)
_PLAIN = Questions(
    tasks=_TASKS,
    limit=40,
    budgets=(128, 256),
    answer_tokens=64,
    batch=16,
    note=f"no delimiters of thinking were found, so budgets are short; {_NOTE}",
)


def run_check(
    model: Path,
    base: str | Path,
    folder: Path,
    *,
    seed: int = 0,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Metric | Plain]:
    """Ask both models the same, greedily, and judge the compressed one.

    The same check, interrupted, goes on where it was.

    Args:
        model: folder of the compressed model.
        base: the original: a folder, a hub name, or 'embedded'.
        folder: for everything generated, the summary and its page.
        seed: of the problems.
        trust_remote_code: allow the models' own Python code to run.
        progress: told of every record.

    Returns:
        Entries for a report: 'reasoning.verdict', 'reasoning.reasons', 'reasoning.note', and for
        each family 'reasoning.<family>.verdict', '.retained', '.dense' and '.compressed' (mean
        heights of the curves of accuracy over log2 of the budget).

    Raises:
        SnapfitError: a model cannot be loaded, or reasoning-gym is not installed.

    """
    path = model_folder(str(base), trust_remote_code=trust_remote_code)
    asked = questions(path, trust_remote_code=trust_remote_code)
    budgets = _that_fit(asked, path)
    if not budgets:
        return {
            "reasoning.verdict": UNKNOWN,
            "reasoning.reasons": "the model's context is too short for any reasoning task",
            "reasoning.note": asked.note,
        }
    options = ScalingOptions(
        tasks=asked.tasks,
        sampling=Sampling(
            budgets=budgets,
            temperature=0.0,
            seeds=(seed,),
            samples=1,
            answer_tokens=asked.answer_tokens,
        ),
        limit=asked.limit,
        batch=asked.batch,
        trust_remote_code=trust_remote_code,
    )
    summary = scaling([str(model)], folder, options, against=str(base), progress=progress)
    write_scaling_page(folder / PAGE, summary)
    return _entries(summary, asked, budgets)


def require(requirement: str, entries: Mapping[str, Metric | Plain]) -> str | None:
    """Why a requirement does not hold; None if it does.

    Args:
        requirement: one of `REQUIREMENTS`.
        entries: as `run_check` gives them.

    Raises:
        UsageError: there is no such requirement.

    """
    if requirement not in REQUIREMENTS:
        raise unknown_name("requirement", requirement, REQUIREMENTS)
    verdict = entries["reasoning.verdict"]
    if verdict == KEEPS:
        return None
    return f"{requirement} does not hold: {verdict}: {entries['reasoning.reasons']}"


def questions(base: Path, *, trust_remote_code: bool = False) -> Questions:
    """What to ask a model and its original, by the original's tokenizer.

    Args:
        base: folder of the original.
        trust_remote_code: allow its own Python code to run.

    """
    tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
    words: dict[str, int] = tokenizer.get_vocab()
    if sorted(words, key=words.__getitem__) == list(vocabulary()):
        return _EMBEDDED
    return _THINKING if find_delimiters(tokenizer).end else _PLAIN


def _that_fit(asked: Questions, base: Path) -> tuple[int, ...]:
    """The budgets that the context holds, or one smaller one; none if it holds no thought."""
    config = read_json(base / "config.json")
    context = config.get("text_config", config).get("max_position_embeddings")
    if not isinstance(context, int):
        return asked.budgets
    room = context - PROMPT_TOKENS - asked.answer_tokens
    fitting = tuple(budget for budget in asked.budgets if budget <= room)
    return fitting or ((room,) if room >= LEAST_BUDGET else ())


def _entries(
    summary: Mapping[str, Any], asked: Questions, budgets: tuple[int, ...]
) -> dict[str, Metric | Plain]:
    (verdict,) = (entry["verdict"] for entry in summary["models"].values() if "verdict" in entry)
    sampling = summary["settings"]["sampling"]
    settings: dict[str, Plain] = {
        "budgets": ",".join(map(str, budgets)),
        "samples": sampling["samples"],
        "temperature": sampling["temperature"],
        "seed": sampling["seeds"][0],
    }
    entries: dict[str, Metric | Plain] = {
        "reasoning.verdict": verdict["label"],
        "reasoning.reasons": ". ".join(verdict["reasons"]),
        "reasoning.note": asked.note,
    }
    for family, found in verdict["families"].items():
        entries[f"reasoning.{family}.verdict"] = found["label"]
        for name, key in (("retained", "retained"), ("dense", "base"), ("compressed", "other")):
            interval = found[key]
            entries[f"reasoning.{family}.{name}"] = Metric(
                value=float("nan") if interval["value"] is None else interval["value"],
                unit="",
                kind="measured",
                n=found["problems"],
                settings={**settings, "low": interval["low"], "high": interval["high"]},
            )
    return entries
