"""Opening a model: everything that can be wrong with it is found here, before work starts."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.files import digest_files, read_json
from snapfit.models.shards import Shards, find_shards
from snapfit.nn.experts import unfuse_experts

EMBEDDED = "embedded"
"""The name of the model that is shipped with the package."""

HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "tokenizer*", "merges.txt", "vocab*")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A checkpoint on disk that has passed every check.

    Attributes:
        path: its folder.
        config: its configuration; `config.dtype` is set to `dtype`.
        revision: digest of configuration and weights.
        architecture: `model_type` of the configuration.
        dtype: what most weights are stored in.
        shards: its weight files.
        trust_remote_code: whether code in the folder may be run.

    """

    path: Path
    config: PreTrainedConfig
    revision: str
    architecture: str
    dtype: torch.dtype
    shards: Shards
    trust_remote_code: bool = False


def open_model(path: str | Path, *, trust_remote_code: bool = False) -> ModelSource:
    """Find and check a model: a folder, 'embedded', or a name on the Hugging Face hub.

    Raises:
        UsageError: no such folder or name.
        SnapfitError: it is not a causal language model that snapfit can read.
        CorruptFile: a weight file is missing or truncated.

    """
    folder = _resolve(path, trust_remote_code=trust_remote_code)
    config = open_config(folder, trust_remote_code=trust_remote_code)
    shards = find_shards(folder)
    stored = shards.main_dtype()
    if stored not in DTYPES:
        raise SnapfitError(
            f"{folder} stores its weights as {stored}; snapfit reads {', '.join(DTYPES)}"
        )
    config.dtype = DTYPES[stored]
    return ModelSource(
        path=folder,
        config=config,
        revision=digest_files([folder / "config.json", *shards.files]),
        architecture=str(config.model_type),
        dtype=DTYPES[stored],
        shards=shards,
        trust_remote_code=trust_remote_code,
    )


def open_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a causal language model that is not quantised.

    Raises:
        SnapfitError: it is something else, or unknown to transformers.
        CorruptFile: `config.json` is not valid.

    """
    raw = _read_config(folder)
    _check_not_quantised(folder, raw)
    config = _load_config(folder, raw, trust_remote_code=trust_remote_code)
    _check_causal(folder, config, raw)
    return config


def empty_model(source: ModelSource) -> PreTrainedModel:
    """The model on the meta device: no weights, experts unfused, eval mode.

    Buffers that are not in checkpoints (rotary tables, embedding scales) are real, on the CPU.

    Raises:
        SnapfitError: transformers cannot build the architecture.

    """
    options: dict[str, Any] = {"dtype": source.dtype, "trust_remote_code": source.trust_remote_code}
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                source.config, attn_implementation=_attention(source.config), **options
            )
    except Exception as error:  # what a wrong configuration raises is up to the architecture
        raise SnapfitError(
            f"transformers cannot build {source.path}: {_first_line(error)}"
        ) from error
    _make_buffers_real(model)
    model.tie_weights()
    unfuse_experts(model)
    model.train(False)
    return model


def _make_buffers_real(model: PreTrainedModel) -> None:
    # transformers does the same when it loads: allocate, then the model's own initialisation
    # fills the buffers. Parameters are on the meta device, where initialising them is free.
    for module in model.modules():
        empty = {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_meta and name in module._non_persistent_buffers_set
        }
        for name, buffer in empty.items():
            module._buffers[name] = torch.empty_like(buffer, device="cpu")
        if empty:
            model._init_weights(module)  # type: ignore[no-untyped-call]


def _attention(config: PreTrainedConfig) -> str:
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(known, "_supports_sdpa", True) else "eager"


def _resolve(path: str | Path, *, trust_remote_code: bool) -> Path:
    if str(path) == EMBEDDED:
        return Path(str(importlib.resources.files("snapfit") / "assets" / EMBEDDED))
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{path} is a file; give the model's folder")
    if isinstance(path, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]*[\w-]", path):
        return _download(path, trust_remote_code=trust_remote_code)
    raise UsageError(
        f"no model folder {str(path)!r}; give a folder, 'owner/name' on the Hugging Face hub, "
        f"or {EMBEDDED!r}"
    )


def _download(name: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*HUB_FILES, "*.py"] if trust_remote_code else list(HUB_FILES)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise SnapfitError(
            f"no folder {name!r} here, and the Hugging Face hub cannot be reached to download it; "
            "give a local folder, or go online once to fill the cache"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SnapfitError(
            f"no folder {name!r} here, and the Hugging Face hub did not give it: "
            f"{_first_line(error)}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise SnapfitError(f"{folder} has no config.json; give a folder that save_pretrained wrote")
    raw = read_json(path)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise CorruptFile(f"{path} names no 'model_type'; it is no transformers configuration")
    return raw


def _check_not_quantised(folder: Path, raw: dict[str, Any]) -> None:
    entries = (raw.get(key) for key in ("quantization_config", "compression_config"))
    quantised = next((entry for entry in entries if entry is not None), None)
    if quantised is None and "snapfit" not in raw:
        return
    method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "unknown"
    if method == "snapfit" or "snapfit" in raw:  # the formats 'factored' and 'standalone'
        raise SnapfitError(f"{folder} was compressed by snapfit already; start from its base model")
    raise SnapfitError(
        f"{folder} is quantised already ({method}); compress the unquantised model, then quantise"
    )


def _load_config(folder: Path, raw: dict[str, Any], *, trust_remote_code: bool) -> PreTrainedConfig:
    kind = raw["model_type"]
    if kind not in CONFIG_MAPPING and not trust_remote_code:
        if raw.get("auto_map"):
            raise SnapfitError(
                f"{folder} ({kind}) needs the Python code in its folder; read that code, then "
                "pass --trust-remote-code if you trust it"
            )
        raise SnapfitError(
            f"transformers {transformers.__version__} does not know the architecture {kind!r} of "
            f"{folder}; a newer transformers may"
        )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise CorruptFile(f"{folder / 'config.json'} is not valid: {_first_line(error)}") from error
    return config


def _check_causal(folder: Path, config: PreTrainedConfig, raw: dict[str, Any]) -> None:
    names, code = raw.get("architectures"), raw.get("auto_map")
    stated = str(names[0]) if names and isinstance(names, list) else ""
    has_code = isinstance(code, dict) and "AutoModelForCausalLM" in code
    if has_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    expected = known.__name__ if known is not None else ""
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder-decoder model"
    elif known is None or "ForConditionalGeneration" in expected:
        kind = f"a {stated or config.model_type} model"
    elif stated and not stated.endswith(("ForCausalLM", "LMHeadModel")):
        kind = f"a {stated} model"
    elif not stated and type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        kind = f"a {config.model_type} encoder"
    else:
        return
    raise SnapfitError(
        f"{folder} is {kind}, not a causal language model of text; snapfit compresses those only"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
