"""vLLM engines for tests, and what they must answer."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from served import TOKENS, factors, gap, greedy, plain, prompts
from structures import Case

import snapfit

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # errors come as they are

TIE = 1e-3
"""Gap of two logits, of a spread near one, that float32 sums in another order can turn around."""


def engine(folder: Path, **options: Any) -> Any:
    """A vLLM engine on the CPU."""
    import vllm

    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 128,
        "enforce_eager": True,
        "gpu_memory_utilization": 0.4,
        "disable_log_stats": True,
        "seed": 0,
    }
    return vllm.LLM(model=str(folder), **{**settings, **options})


def answers(llm: Any, tokens: int = TOKENS) -> list[list[int]]:
    """Greedy continuations of `prompts()`."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts()]
    found = llm.generate(asked, params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in found]


def assert_same(folder: Path, found: list[list[int]]) -> None:
    """Equal to transformers', or the first difference is between logits that tie."""
    model = snapfit.load(folder, trust_remote_code=True)
    for prompt, ours in zip(prompts(), found, strict=True):
        theirs = greedy(model, prompt, len(ours))
        differs = [i for i in range(len(ours)) if ours[i] != theirs[i]]
        if differs:
            first = differs[0]
            given = [*prompt, *theirs[:first]]
            assert abs(gap(model, given, theirs[first], ours[first])) < TIE, (prompt, first)
    assert len({tuple(tokens) for tokens in found}) > len(found) // 2


def saved(make: Callable[[Case], Case], architecture: str, folder: Path, **changes: Any) -> Path:
    given = make(plain(architecture, folder / "dense", **changes))
    return given.save(folder / "small", factors=tuple(factors(given)))


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Any]:
    llm = engine(folder, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
