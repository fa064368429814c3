"""The vLLM plug-in: factored checkpoints in vLLM's own model classes, with no option to give.

vLLM finds `register` by its entry point (`vllm.general_plugins`) and calls it in every process.
A checkpoint whose `quant_method` is 'snapfit' then gets, in the place of each changed linear
layer's product, one that reads the shapes of the checkpoint. Nothing is quantised.

This module is all that may be imported where vLLM is not installed.
"""

from __future__ import annotations

from snapfit.checkpoint.format import METHOD


def register() -> None:
    """Enter the format into vLLM's table; once, however often it is called."""
    from vllm.model_executor.layers import quantization

    if METHOD not in quantization.QUANTIZATION_METHODS:
        from snapfit.checkpoint.vllm.config import SnapfitConfig

        quantization.register_quantization_config(METHOD)(SnapfitConfig)
