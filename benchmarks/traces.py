"""Self-BLEU and scoring against what others computed on real traces.

    python benchmarks/traces.py

Claims, on ../shared/data/traces:

1. Self-BLEU of the two AIME24 traces of s1.1-7B equals nltk's sentence BLEU with smoothing method
   4, every sentence against all others, to 1e-6 (nltk takes minutes, we take seconds).
2. On 100 MATH problems with 8 recorded solutions each, pass@k from our scorer equals pass@k from
   the recorded scores, and maj@k that from the recorded answers, but for the disagreements that
   are listed, each with a judgement written by hand in JUDGED. A disagreement that nobody has
   judged makes the run fail.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.core.files import write_json
from snapfit.core.passk import maj_at_k, pass_at_k, powers_of_two
from snapfit.core.resample import mean_interval
from snapfit.evals.scoring import judge_math, same_answer
from snapfit.evals.tasks.base import Problem
from snapfit.evals.traces.self_bleu import self_bleu
from snapfit.evals.traces.text import sentences

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-6

JUDGED = {
    "problem 72, sample 7": "We are right: 49,994/7 + 20,006/7 = 70,000/7 = 10,000, and the gold "
    "`10{,}000` is LaTeX for that number with a thousands separator. The recorded scorer did not "
    "read the separator.",
    "problem 72, maj@1": "We are right, for the same reason: of the eight groups of one sample, "
    "the last is sample 7. At k of 2 and more it is outvoted, or second in a tie.",
}
"""Who is right, and why, by problem and sample (scores) or by problem and k (majorities)."""

BOTH_WRONG = (
    (
        "problem 3: the gold `4:30p..` is what an extraction left of 4:30 p.m. All eight samples "
        "say `4:30`; recorded and ours both call them wrong. A reader would call them right: the "
        "data is damaged, and neither scorer guesses."
    ),
)
"""Agreements on "wrong" that are not: found by reading all problems with a wrong sample."""


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One problem with its recorded solutions, as recorded and as we judge them."""

    index: int
    gold: str
    theirs: tuple[str, ...]
    recorded: tuple[bool, ...]
    ours: tuple[str | None, ...]
    judged: tuple[bool, ...]


def nltk_self_bleu(parts: Sequence[Sequence[str]]) -> float:
    """The published definition, with nltk doing all of the work."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method4
    scores = [
        sentence_bleu([*parts[:i], *parts[i + 1 :]], part, smoothing_function=smooth)
        for i, part in enumerate(parts)
    ]
    return float(np.mean(scores))


def bleu_rows(path: Path) -> list[dict[str, Any]]:
    """Both figures for every trace of a file, with the time that they took."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        for text in _flat(json.loads(line)["resps"]):
            parts = sentences(text)
            began = time.perf_counter()
            ours = self_bleu(parts)
            between = time.perf_counter()
            theirs = nltk_self_bleu(parts)
            rows.append(
                {
                    "sentences": len(parts),
                    "ours": ours,
                    "nltk": theirs,
                    "difference": abs(ours - theirs),
                    "seconds_ours": between - began,
                    "seconds_nltk": time.perf_counter() - between,
                }
            )
    return rows


def _flat(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for part in value for text in _flat(part)]


def read_solved(path: Path) -> list[Solved]:
    """Every problem of the file, judged by our scorer."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        problem = Problem(id=str(row["idx"]), question=row["question"], answer=row["gt"])
        judged = [judge_math(problem, text) for text in row["code"]]
        found.append(
            Solved(
                index=row["idx"],
                gold=row["gt"],
                theirs=tuple(row["pred"]),
                recorded=tuple(row["score"]),
                ours=tuple(one.answer for one in judged),
                judged=tuple(one.correct for one in judged),
            )
        )
    return found


def disagreements(solved: Sequence[Solved]) -> list[dict[str, Any]]:
    """Scores, and majorities at every k, that are not what was recorded."""
    found: list[dict[str, Any]] = []
    for one in solved:
        for sample, (recorded, judged) in enumerate(zip(one.recorded, one.judged, strict=True)):
            if recorded != judged:
                found.append(
                    {
                        "what": f"problem {one.index}, sample {sample}",
                        "gold": one.gold,
                        "answer": one.theirs[sample],
                        "recorded": recorded,
                        "ours": judged,
                    }
                )
        for k in powers_of_two(len(one.judged)):
            recorded_at, ours_at = _majorities(one, k)
            if recorded_at != ours_at:
                found.append(
                    {
                        "what": f"problem {one.index}, maj@{k}",
                        "gold": one.gold,
                        "answer": ", ".join(one.theirs),
                        "recorded": recorded_at,
                        "ours": ours_at,
                    }
                )
    return found


def _majorities(one: Solved, k: int) -> tuple[float, float]:
    """maj@k from the recorded answers and scores, spelled alike; and from ours, equal."""
    theirs = [answer or None for answer in one.theirs]
    recorded = maj_at_k(theirs, one.recorded, str.__eq__, k)
    return recorded, maj_at_k(one.ours, one.judged, same_answer("math"), k)


def figures(solved: Sequence[Solved]) -> list[dict[str, Any]]:
    """pass@k and maj@k, recorded and ours, with our intervals."""
    recorded_PS = np.array([one.recorded for one in solved])
    judged_PS = np.array([one.judged for one in solved])
    rows = []
    for k in powers_of_two(judged_PS.shape[1]):
        majorities = np.array([_majorities(one, k) for one in solved])
        ours, majority = mean_interval(pass_at_k(judged_PS, k)), mean_interval(majorities[:, 1])
        rows.append(
            {
                "k": k,
                "pass_recorded": float(pass_at_k(recorded_PS, k).mean()),
                "pass_ours": [ours.value, ours.low, ours.high],
                "maj_recorded": float(majorities[:, 0].mean()),
                "maj_ours": [majority.value, majority.low, majority.high],
            }
        )
    return rows


def report(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        (
            "Self-BLEU of the AIME24 traces of s1.1-7B: every sentence against all others, "
            "smoothing method 4."
        ),
        "",
        "| sentences | ours | nltk | difference | seconds, ours | seconds, nltk |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['sentences']} | {row['ours']:.9f} | {row['nltk']:.9f} | {row['difference']:.1e} "
        f"| {row['seconds_ours']:.2f} | {row['seconds_nltk']:.1f} |"
        for row in result["self_bleu"]
    ]
    lines += [
        "",
        (
            f"{result['problems']} MATH problems, {result['samples']} recorded solutions each. "
            "Ours: math-verify on the whole solution; recorded: the `score` and `pred` of the "
            "file, majorities by spelling. 95% intervals over problems."
        ),
        "",
        "| k | pass@k recorded | pass@k ours | maj@k recorded | maj@k ours |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['k']} | {row['pass_recorded']:.4f} | {_shown(row['pass_ours'])} "
        f"| {row['maj_recorded']:.4f} | {_shown(row['maj_ours'])} |"
        for row in result["figures"]
    ]
    differ = result["disagreements"]
    lines += ["", f"Disagreements: {len(differ)}.", ""]
    lines += [
        f"- {row['what']}: gold `{row['gold']}`, answer `{row['answer']}`; recorded "
        f"{row['recorded']}, ours {row['ours']}. {row['judgement']}"
        for row in differ
    ]
    lines += ["", "Agreements that a reader would not share:", ""]
    lines += [f"- {entry}" for entry in result["both_wrong"]]
    return "\n".join(lines) + "\n"


def _shown(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.4f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Compute, write the tables, check the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/traces"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    solved = read_solved(args.data / "math_cot_100_samples.jsonl")
    differ = disagreements(solved)
    result: dict[str, Any] = {
        "command": "python benchmarks/traces.py",
        "problems": len(solved),
        "samples": len(solved[0].judged),
        "figures": figures(solved),
        "both_wrong": list(BOTH_WRONG),
        "disagreements": [
            {**row, "judgement": JUDGED.get(row["what"], "NOT JUDGED")} for row in differ
        ],
        "self_bleu": bleu_rows(args.data / "s1.1-7B_aime24.jsonl"),
    }
    write_json(args.out / "traces.json", result)
    (args.out / "traces.md").write_text(report(result), encoding="utf-8")
    print(report(result))
    off = [row for row in result["self_bleu"] if row["difference"] > TOLERANCE]
    assert not off, f"Self-BLEU differs from nltk's: {off}"
    unjudged = [row["what"] for row in differ if row["what"] not in JUDGED]
    assert not unjudged, f"disagreements that nobody has judged: {unjudged}"


if __name__ == "__main__":
    main()
