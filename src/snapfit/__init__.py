"""snapfit: compress causal language models into shapes that are fast where they are served.

The public verbs are imported lazily, so that `import snapfit` loads neither torch nor
transformers; the first use of a verb does.
"""

from __future__ import annotations

__version__ = "0.1.0"
