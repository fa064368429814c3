"""snapfit: compress causal language models into shapes that are fast where they are served.

The public verbs are imported lazily, so that `import snapfit` loads neither torch nor
transformers; the first use of a verb does. Importing snapfit also lets transformers load
checkpoints that snapfit wrote, whichever of the two is imported first (`snapfit._hooks`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from snapfit._hooks import teach_transformers

if TYPE_CHECKING:
    from snapfit.checkpoint.load import load, load_tokenizer
    from snapfit.core.align import align_dims as align
    from snapfit.evals.perplexity import perplexity
    from snapfit.pipeline import apply, compress, plan

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "align",
    "apply",
    "compress",
    "load",
    "load_tokenizer",
    "perplexity",
    "plan",
]

_VERBS = {
    "align": ("snapfit.core.align", "align_dims"),
    "apply": ("snapfit.pipeline", "apply"),
    "compress": ("snapfit.pipeline", "compress"),
    "load": ("snapfit.checkpoint.load", "load"),
    "load_tokenizer": ("snapfit.checkpoint.load", "load_tokenizer"),
    "perplexity": ("snapfit.evals.perplexity", "perplexity"),
    "plan": ("snapfit.pipeline", "plan"),
}

teach_transformers()


def __getattr__(name: str) -> Any:
    if name not in _VERBS:
        raise AttributeError(f"module 'snapfit' has no attribute {name!r}")
    module, attribute = _VERBS[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_VERBS])
