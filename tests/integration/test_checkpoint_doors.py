"""Both doors into a factored checkpoint, in any order of imports; and the loud failure without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import IDS, dense, write

import snapfit
from snapfit.checkpoint.load import load


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    # A command line test may have silenced transformers in this process.
    env = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=env
    )


def test_importing_snapfit_loads_nothing_heavy() -> None:
    code = (
        "import sys, snapfit; "
        "print([n for n in ('torch', 'transformers', 'numpy', 'safetensors') if n in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "imports",
    [
        "import snapfit",
        "import transformers.quantizers.auto, snapfit",
        "import transformers, snapfit, importlib; importlib.reload(snapfit)",
    ],
)
def test_transformers_learns_the_format_in_any_order(small: Path, imports: str) -> None:
    code = (
        f"import sys; {imports}; from transformers import AutoModelForCausalLM; "
        "import importlib; importlib.reload(snapfit); "
        "from transformers.quantizers import auto; "
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "print(type(model).__name__, type(model.model.layers[0].self_attn.q_proj).__name__, "
        "type(auto.__loader__).__name__, type(auto.__spec__.loader).__name__, "
        "[f for f in sys.meta_path if type(f).__module__ == 'snapfit._hooks'])"
    )
    done = python(code, small)
    expected = "LlamaForCausalLM FactoredLinear SourceFileLoader SourceFileLoader []"
    assert done.stdout.strip() == expected, done.stderr


BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "snapfit":
            raise ModuleNotFoundError("blocked")
sys.meta_path.insert(0, Block())
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        print("loaded")
    except RuntimeError as error:
        print(error)
"""


def test_without_the_plugin_transformers_fails_loudly(tmp_path: Path) -> None:
    llama = dense(tmp_path / "llama")
    mixtral = dense(tmp_path / "mixtral", "mixtral", num_local_experts=2, num_experts_per_tok=1)
    # All layers, one layer, one expert, and experts that are only unfused.
    cases = (llama, "_proj"), (llama, "1.mlp.up_proj"), (mixtral, "experts.0.up"), (mixtral, "none")
    folders = [tmp_path / str(index) for index in range(len(cases))]
    for folder, (base, suffix) in zip(folders, cases, strict=True):
        write(base, folder, suffix)
        assert load(folder)(IDS).logits.isfinite().all()
    done = python(BARE, *folders)
    message = "You set `ignore_mismatched_sizes` to `False`, thus raising an error."
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(message) == len(done.stdout.splitlines()) == len(cases)
    assert "Unknown quantization type, got snapfit" in done.stderr


def test_a_lazy_verb_is_found_and_an_unknown_one_is_not() -> None:
    assert snapfit.load is load
    assert "compress" in dir(snapfit)
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = snapfit.compres  # type: ignore[attr-defined]
