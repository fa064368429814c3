"""What vLLM is told about a factored checkpoint: which of its layers need which product.

It is pickled into worker processes, so its classes and attributes are plain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)
from vllm.model_executor.models.utils import WeightsMapper

from snapfit.checkpoint.format import METHOD, read_format
from snapfit.checkpoint.vllm.linear import SnapfitLinearMethod
from snapfit.checkpoint.vllm.rebuild import Rebuilder
from snapfit.core.errors import SnapfitError
from snapfit.core.structure import Structure


class SnapfitConfig(QuantizationConfig):  # type: ignore[misc]
    """The `quantization_config` of a factored checkpoint, for vLLM.

    Args:
        structure: what the compressed model looks like.

    """

    def __init__(self, structure: Structure) -> None:
        super().__init__()
        self.structure = structure
        self._served: set[str] = set()
        self._rebuilder: Rebuilder | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SnapfitConfig:
        """Read and check the description.

        Raises:
            CorruptFile: see `read_format`.
            SnapfitError: no class of vLLM can hold the model.

        """
        structure = read_format(config)
        _refuse(structure)
        return cls(structure)

    def get_name(self) -> str:
        """The format's name."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        """All that vLLM computes in."""
        return [torch.float16, torch.bfloat16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        """Any device: the products are vLLM's own."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """None: everything is in config.json."""
        return []

    def apply_vllm_mapper(self, hf_to_vllm_mapper: WeightsMapper) -> None:
        """Rename to vLLM's names where they differ from those of the checkpoint."""
        names = hf_to_vllm_mapper.map_name
        old = self.structure

        def renamed(table: Any) -> Any:
            return {names(name) or name: value for name, value in table.items()}

        self.structure = replace(
            old,
            modules=renamed(old.modules),
            absent=renamed(old.absent),
            heads=renamed(old.heads),
        )

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        """The product of a layer; None for what is no linear layer.

        Raises:
            SnapfitError: vLLM's class cannot hold what the checkpoint says.

        """
        if not isinstance(layer, LinearBase):
            return None
        _refuse_settings()
        parent = prefix.rpartition(".")[0]
        if self._rebuilder is None:
            self._rebuilder = Rebuilder(self.structure)
        names = self._names(prefix)
        layouts = [self.structure.modules.get(name) for name in names]
        if not any(layouts):
            return UnquantizedLinearMethod()
        self._served |= set(names)
        named = list(zip(names, layouts, strict=True))
        return SnapfitLinearMethod(named, self.structure.heads.get(parent))

    def get_checkpoint_weight_mapper(self) -> WeightsMapper:
        """Biases of changed layers go to this plug-in: vLLM makes them of other sizes, or none.

        Raises:
            SnapfitError: the checkpoint changes layers that vLLM has not made.

        """
        self._check_served()
        patterns = {
            re.compile(rf"((?:^|\.){re.escape(_short(name))})\.bias$"): r"\1.b.bias"
            for name in sorted(self._served)
        }
        return WeightsMapper(orig_to_new_regex=patterns)

    def _names(self, prefix: str) -> list[str]:
        """Names in the checkpoint of the layers in a layer of vLLM."""
        parent, _, leaf = prefix.rpartition(".")
        inner = self.packed_modules_mapping.get(leaf, [leaf])
        return [f"{parent}.{name}" if parent else name for name in inner]

    def _check_served(self) -> None:
        if unserved := sorted(self.structure.modules.keys() - self._served):
            raise SnapfitError(
                f"vLLM's model class has no layer {unserved[0]}, which the checkpoint changes; "
                "save the model as 'standalone'"
            )
        if self._rebuilder is not None:
            self._rebuilder.finish()


def _short(name: str) -> str:
    """Without its first component, which inner loaders of vLLM take off."""
    return name.partition(".")[2] or name


def _refuse(structure: Structure) -> None:
    """What no native class of vLLM has a place for.

    Raises:
        SnapfitError: with the format that has.

    """
    if structure.unfused or structure.experts:
        raise SnapfitError(
            "vLLM computes all experts of a layer in one kernel, which has no place for experts "
            "of their own sizes; save the model as 'standalone', or 'stock' where it holds the plan"
        )
    if structure.vectors:
        raise SnapfitError(
            f"vLLM has no place for a shorter {_first(structure.vectors)}; save the model as "
            "'stock', or serve it with transformers"
        )


def _refuse_settings() -> None:
    """What vLLM was asked for and cannot do with changed layers.

    Raises:
        SnapfitError: with what to do instead.

    """
    config = get_current_vllm_config()
    if config.parallel_config.pipeline_parallel_size > 1:
        raise SnapfitError(
            "a factored checkpoint is checked against the whole model, of which a worker of "
            "--pipeline-parallel-size builds a part; share it by --tensor-parallel-size instead"
        )
    if config.lora_config is not None:
        raise SnapfitError(
            "LoRA adapters are made for the uncompressed matrices and do not fit factored or "
            "narrowed ones; serve without --enable-lora, or merge the adapter before compressing"
        )


def _first(names: Iterable[str]) -> str:
    return min(names)
