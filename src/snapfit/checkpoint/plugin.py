"""The transformers plug-in: after `import snapfit`, `from_pretrained` loads factored checkpoints.

transformers calls what rewrites a model before its weights are loaded a "quantizer". Ours swaps
linear layers for factor pairs and quantises nothing: the loaded model is an ordinary model of its
native class, can be cast, trained and saved with `save_pretrained`, and keeps every bit.

It is imported while transformers is half imported itself (`snapfit._hooks`), so it may import
nothing of transformers at run time beyond `transformers.quantizers.auto` and what that imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from snapfit.checkpoint.format import METHOD, guard_keys, read_format
from snapfit.core.errors import CorruptFile
from snapfit.core.structure import ENTRIES, Structure
from snapfit.nn.experts import ignore_guards, unfuse_experts
from snapfit.nn.factored import FactoredLinear
from snapfit.nn.parts import AbsentPart
from snapfit.nn.surgery import reshape
from snapfit.nn.tensorfile import open_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SnapfitConfig(QuantizationConfigMixin):
    """`quantization_config` of a factored checkpoint; validated when made.

    Raises:
        CorruptFile: see `snapfit.checkpoint.format.read_format`.

    """

    def __init__(self, **data: Any) -> None:
        read_format(data)
        self.quant_method = METHOD  # type: ignore[assignment]
        for name in ("version", *ENTRIES):
            if name in data:
                setattr(self, name, data[name])


class SnapfitQuantizer(HfQuantizer):
    """Gives a model on the meta device the shapes of the checkpoint, then checks what came."""

    requires_calibration = True  # a dense model cannot be made factored while it loads

    def _process_model_before_weight_loading(
        self,
        model: PreTrainedModel,
        checkpoint_files: Sequence[str] | None = None,
        **_: Any,
    ) -> PreTrainedModel:
        structure = _local(model, read_format(self.quantization_config.to_dict()))
        _check_depth(model, structure)
        if structure.unfused:
            unfuse_experts(model)
            ignore_guards(model)
        _refuse_tied(model, structure)
        reshape(model, structure)
        _check_stored(model, structure, checkpoint_files or ())
        # transformers does not compare shapes when there is a quantizer, so we do, afterwards.
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: Any
    ) -> PreTrainedModel:
        for name, tensor in model.state_dict().items():
            if tuple(tensor.shape) != self._shapes.get(name, tuple(tensor.shape)):
                raise CorruptFile(_misfit(name, tuple(tensor.shape), self._shapes[name]))
        for module in model.modules():
            if isinstance(module, FactoredLinear):
                module.weight.requires_grad_(False)
            elif isinstance(module, AbsentPart):
                module.requires_grad_(False)
            if (config := getattr(module, "config", None)) is not None:
                config.__dict__.pop("_is_quantized", None)
        # Quantised models refuse half(), float() and full fine-tuning; this one is not quantised.
        setattr(model, "is_quantized", False)  # noqa: B010 - not declared by the class
        return model

    def get_state_dict_and_metadata(
        self, model: PreTrainedModel
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """The state dict to save, with the keys that make a load without snapfit fail."""
        guards = guard_keys(model, model.dtype)
        return ({**model.state_dict(), **guards} if guards else None), {}

    def is_serializable(self, **_: Any) -> bool:
        """Plain `save_pretrained` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Factors are ordinary parameters."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Factored layers are two ordinary products."""
        return True


def register() -> None:
    """Enter the format into transformers' tables; once, however often it is called."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(SnapfitConfig)
        register_quantizer(METHOD)(SnapfitQuantizer)


def _local(model: PreTrainedModel, structure: Structure) -> Structure:
    """`structure` by this model's names: a bare decoder (`AutoModel`) lacks the prefix."""
    prefix = model.base_model_prefix
    if prefix and not hasattr(model, prefix):
        return structure.without_prefix(f"{prefix}.")
    return structure


def _check_depth(model: PreTrainedModel, structure: Structure) -> None:
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    if structure.layers and len(structure.layers) != count:
        raise CorruptFile(
            f"quantization_config lists {len(structure.layers)} layers, num_hidden_layers is "
            f"{count}; config.json was edited"
        )


def _refuse_tied(model: PreTrainedModel, structure: Structure) -> None:
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    shared = {*tied, *tied.values()}
    for name in structure.modules:
        if f"{name}.weight" in shared:
            raise CorruptFile(f"{name} is tied to another weight, so it cannot be changed alone")
    for name in shared.intersection(structure.vectors):
        raise CorruptFile(f"{name} is tied to another weight, so it cannot be changed alone")


def _check_stored(model: nn.Module, structure: Structure, files: Sequence[str]) -> None:
    """What is changed must be on disk in the right shape: transformers only warns where it is not.

    Raises:
        CorruptFile: a file is unreadable, or a tensor is missing or misshapen.

    """
    stored: dict[str, tuple[int, ...]] = {}
    for file in files:
        if not str(file).endswith(".safetensors"):
            return
        with open_tensors(Path(file)) as tensors:
            for key in tensors.keys():  # noqa: SIM118 - a handle is no mapping
                stored[key] = tuple(tensors.get_slice(key).get_shape())
    if not stored:
        return
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name in (*structure.modules, *structure.absent):
        for leaf, tensor in model.get_submodule(name).state_dict().items():
            key = f"{name}.{leaf}"
            names = (key, prefix + key, key.removeprefix(prefix))
            found = next((stored[n] for n in names if n in stored), None)
            if found is None:
                raise CorruptFile(f"the checkpoint lacks {key}; copy its weight files again")
            if found != tuple(tensor.shape):
                raise CorruptFile(_misfit(key, found, tuple(tensor.shape)))


def _misfit(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return (
        f"{name} is {list(found)} in the weight files, config.json says {list(expected)}; "
        "the files are of different checkpoints"
    )
