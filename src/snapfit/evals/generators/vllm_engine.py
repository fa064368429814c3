"""Generation with vLLM in this process.

vLLM's own thinking budget is not used: it is one number an engine's request, overshoots by two
tokens in 0.32, and would need a generation a budget, where a prefix of one generation serves all.
`max_tokens` is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from snapfit.core.errors import SnapfitError
from snapfit.evals.generators.base import Generation, Request, finished
from snapfit.evals.vllm_start import cause, engine_settings

CHUNK = 256
"""Requests handed to the engine together; it batches them itself."""

CPU_MEMORY = 0.4
"""Share of main memory that an engine on the CPU may use."""


class VllmGenerator:
    """Answers with a vLLM engine.

    Args:
        model: folder of the checkpoint.
        eos: tokens that end a sequence.
        decode: token ids to text, for stop sequences.
        dtype: of the weights in the engine.
        max_model_len: longest prompt and generation together; None for the model's own.
        trust_remote_code: allow the checkpoint's own Python code to run.

    Raises:
        SnapfitError: vLLM is not installed, or its engine does not start.
        UsageError: the checkpoint needs its own code, and it may not run.

    """

    backend = "vllm"
    chunk = CHUNK

    def __init__(
        self,
        model: Path,
        *,
        eos: frozenset[int],
        decode: Callable[[Sequence[int]], str],
        dtype: str = "auto",
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        settings = engine_settings(model, trust_remote_code=trust_remote_code)
        try:
            import vllm
        except ImportError as error:
            raise SnapfitError(
                f"vLLM is not installed ({error}); pip install 'snapfit[serve]', or use "
                "--backend hf"
            ) from error
        self._vllm: Any = vllm
        self._eos = eos
        self._decode = decode
        try:
            self._engine = vllm.LLM(
                model=str(model),
                dtype=dtype,
                max_model_len=max_model_len,
                disable_log_stats=True,
                seed=0,
                **_of_platform(vllm),
                **settings,
            )
        except Exception as error:
            raise SnapfitError(f"vLLM cannot serve {model}: {cause(error)}") from error
        self.context: int | None = self._engine.llm_engine.model_config.max_model_len

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Answer in rounds, within which the engine batches as it likes.

        Raises:
            SnapfitError: the engine failed.

        """
        for start in range(0, len(requests), CHUNK):
            part = requests[start : start + CHUNK]
            asked = [request for request in part if request.max_tokens > 0]
            began = time.perf_counter()
            found = iter(self._run(asked) if asked else [])
            share = (time.perf_counter() - began) / max(1, len(asked))
            for at, request in enumerate(part, start):
                if request.max_tokens <= 0:
                    yield at, Generation(ids=(), ended="length", seconds=0.0)
                    continue
                ids, ended = finished(next(found), request, self._eos)
                yield at, Generation(ids=ids, ended=ended, seconds=share)

    def _run(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        params = [self._params(request) for request in requests]
        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        try:
            outputs = self._engine.generate(prompts, params, use_tqdm=False)
        except Exception as error:
            raise SnapfitError(f"vLLM failed while generating: {cause(error)}") from error
        return [tuple(output.outputs[0].token_ids) for output in outputs]

    def _params(self, request: Request) -> Any:
        """Single tokens stop the engine by id; longer sequences by their text, kept in the output.

        Where their text is written with other tokens, `finished` does not find it, and the
        generation counts as ended by length: the engine stopped there all the same.
        """
        single = {stop[0] for stop in request.stop if len(stop) == 1}
        longer = [self._decode(stop) for stop in request.stop if len(stop) > 1]
        return self._vllm.SamplingParams(
            temperature=request.temperature,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_token_ids=sorted(self._eos | single),
            stop=longer or None,
            include_stop_str_in_output=bool(longer),
            detokenize=bool(longer),
            skip_special_tokens=False,  # or s1's "<|im_start|>answer" would stop nothing
        )


def _of_platform(vllm: Any) -> dict[str, Any]:
    """On a CPU the engine must not claim nearly all memory, and compiling costs minutes.

    After a prompt that was read in chunks, vLLM 0.32 rewinds the generator of a seeded request,
    which generators on the CPU cannot do: the engine dies. So prompts are read whole.
    """
    if vllm.platforms.current_platform.is_cpu():
        return {
            "enforce_eager": True,
            "gpu_memory_utilization": CPU_MEMORY,
            "enable_chunked_prefill": False,
        }
    return {}
