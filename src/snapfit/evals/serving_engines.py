"""Engines that serve a checkpoint, behind what `serve-check` needs of one.

Shape suffixes: B sequences, T tokens.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from snapfit.core.errors import SnapfitError
from snapfit.evals.serving import Ids
from snapfit.evals.vllm_start import cause, engine_settings
from snapfit.nn.cache import cache_argument

KV_BYTES = 1 << 30
"""Cache of keys and values of an engine on the CPU: the same for both models."""

SHARE = 0.4
"""Share of an accelerator's memory for one engine: two are there at a time."""

PROMPT_TOKENS = 1000
"""Token ids of timed prompts are below this, or below the vocabulary."""


class Engine(Protocol):
    """A model behind an engine.

    Attributes:
        name: of the engine, with its version.
        resident: bytes of main memory of its processes after loading; None where unknown.

    """

    name: str
    resident: int | None

    def answers(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """Greedy continuations of exactly `tokens` tokens."""

    def prefill_seconds(self, batch: int, tokens: int) -> float:
        """See `serving_time.Timed`."""

    def step_seconds(self, batch: int, tokens: int, steps: int) -> float:
        """See `serving_time.Timed`."""

    def close(self) -> None:
        """Free what it holds."""


class TransformersEngine:
    """transformers in this process.

    Args:
        model: in eval mode.

    """

    resident: int | None = None

    def __init__(self, model: Any) -> None:
        import transformers

        self.name = f"transformers {transformers.__version__}"
        self._model = model

    @torch.no_grad()
    def logits(self, ids_T: Tensor) -> Tensor:
        """(T,) -> (T, V), without a cache."""
        output: Tensor = self._model(ids_T[None].to(self._model.device), use_cache=False).logits[0]
        return output.cpu()

    @torch.no_grad()
    def answers(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """One prompt at a time: nothing is padded."""
        found = []
        for prompt in prompts:
            ids_BT = torch.tensor([prompt], device=self._model.device)
            output_BT = self._model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                eos_token_id=None,
                pad_token_id=0,
            )
            found.append(tuple(int(token) for token in output_BT[0, len(prompt) :]))
        return found

    @torch.no_grad()
    def prefill_seconds(self, batch: int, tokens: int) -> float:
        """A forward pass that fills a cache."""
        ids_BT = self._ids(batch, tokens)
        began = self._now()
        self._model(ids_BT, use_cache=True, logits_to_keep=1)
        return self._now() - began

    @torch.no_grad()
    def step_seconds(self, batch: int, tokens: int, steps: int) -> float:
        """The median of `steps` steps."""
        output = self._model(self._ids(batch, tokens), use_cache=True, logits_to_keep=1)
        found = []
        for _ in range(steps):
            next_B1 = output.logits[:, -1].argmax(-1, keepdim=True)
            began = self._now()
            held = {cache_argument(self._model): output.past_key_values}
            output = self._model(next_B1, **held, use_cache=True, logits_to_keep=1)
            found.append(self._now() - began)
        return statistics.median(found)

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def _ids(self, batch: int, tokens: int) -> Tensor:
        below, device = _below(self._model.config), self._model.device
        return torch.randint(below, (batch, tokens), device=device)

    def _now(self) -> float:
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class VllmEngine:
    """vLLM, its engine in a process of its own.

    Args:
        folder: of the checkpoint.
        dtype: of the weights in the engine.
        max_model_len: longest prompt and generation together.
        max_tokens: most tokens of one forward pass.
        compiled: whether vLLM may compile the model, which takes minutes on a CPU.
        trust_remote_code: allow the code in the folder to run.
        tensor_parallel: workers.

    Raises:
        UsageError: the folder's code would have to run, and may not.
        SnapfitError: vLLM is not installed, or its engine does not start.

    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        max_model_len: int,
        max_tokens: int,
        compiled: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel: int = 1,
    ) -> None:
        settings = engine_settings(folder, trust_remote_code=trust_remote_code)
        # Its log tells of every start in a hundred lines; who wants them sets this to INFO.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import psutil
            import vllm
            from vllm.platforms import current_platform
        except ImportError as error:
            raise SnapfitError(
                f"vLLM is not installed ({error}); pip install 'snapfit[serve]', or use "
                "--engine transformers"
            ) from error
        self.name = f"vllm {vllm.__version__}"
        self._vllm: Any = vllm
        memory = {"kv_cache_memory_bytes": KV_BYTES} if current_platform.is_cpu() else {}
        before = {process.pid for process in psutil.Process().children(recursive=True)}
        try:
            with _output_on_stderr():
                self._llm = vllm.LLM(
                    model=str(folder),
                    dtype=dtype,
                    max_model_len=max_model_len,
                    max_num_batched_tokens=max(max_tokens, max_model_len),
                    enforce_eager=not compiled,
                    enable_prefix_caching=False,
                    gpu_memory_utilization=SHARE,
                    disable_log_stats=False,
                    tensor_parallel_size=tensor_parallel,
                    seed=0,
                    **memory,
                    **settings,
                )
        except Exception as error:
            raise SnapfitError(f"vLLM cannot serve {folder}: {cause(error)}") from error
        ours = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
        self.resident = sum(p.memory_info().rss for p in ours) if ours else None
        self._vocabulary = _below(self._llm.llm_engine.model_config.hf_config)

    def answers(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """All at once; the engine batches them.

        Raises:
            SnapfitError: the engine failed.

        """
        return [tuple(output.outputs[0].token_ids) for output in self._run(prompts, tokens)]

    def prefill_seconds(self, batch: int, tokens: int) -> float:
        """Wall-clock time of a request for one token, the engine's own work included."""
        prompts = self._prompts(batch, tokens)
        began = time.perf_counter()
        self._run(prompts, 1)
        return time.perf_counter() - began

    def step_seconds(self, batch: int, tokens: int, steps: int) -> float:
        """From the last prompt's first token to its last: all others decode beside it."""
        outputs = self._run(self._prompts(batch, tokens), steps + 1)
        last = max((output.metrics for output in outputs), key=lambda m: float(m.first_token_ts))
        return float(last.last_token_ts - last.first_token_ts) / steps

    def close(self) -> None:
        """End the engine's processes."""
        self._llm.llm_engine.engine_core.shutdown()

    def _run(self, prompts: Sequence[Ids], tokens: int) -> list[Any]:
        params = self._vllm.SamplingParams(
            temperature=0.0,
            repetition_penalty=1.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
        )
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        try:
            found: list[Any] = self._llm.generate(asked, params, use_tqdm=False)
        except Exception as error:
            raise SnapfitError(f"vLLM failed while generating: {cause(error)}") from error
        return found

    def _prompts(self, batch: int, tokens: int) -> list[Ids]:
        return [tuple(ids) for ids in torch.randint(self._vocabulary, (batch, tokens)).tolist()]


@contextlib.contextmanager
def _output_on_stderr() -> Iterator[None]:
    """Processes that are started meanwhile write to stderr: stdout is for the answer."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _below(config: Any) -> int:
    return min(PROMPT_TOKENS, int(config.get_text_config().vocab_size))
