"""Load any checkpoint strictly: a model that loads here has every weight it should have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from snapfit.checkpoint.plugin import SnapfitQuantizer, register
from snapfit.checkpoint.standalone import KEY
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import read_json

SHOWN = 3
"""Names listed in a message before 'and N more'."""


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, compressed by snapfit or not, in eval mode.

    Args:
        path: its folder.
        dtype: of the loaded weights; the checkpoint's own when None.
        device: where to put it; the CPU when None.
        trust_remote_code: allow Python code in the folder to run.

    Raises:
        SnapfitError: there is no such folder, or transformers cannot make a model of it.
        CorruptFile: weights are missing, truncated, or of another shape than config.json says.

    """
    register()
    folder = _folder(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_described(folder),
            dtype=dtype or "auto",
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except SnapfitError:
        raise
    except SafetensorError as error:
        raise CorruptFile(
            f"a weight file of {folder} is damaged ({error}); copy it again"
        ) from error
    except RuntimeError as error:
        if "mismatched" in str(error):
            raise CorruptFile(
                f"weights of {folder} have other shapes than config.json says; copy it again"
            ) from error
        raise SnapfitError(f"cannot load {folder}: {_one_line(error)}") from error
    except Exception as error:  # what a wrong configuration raises is up to the architecture
        raise SnapfitError(f"cannot load {folder}: {_one_line(error)}") from error
    model: PreTrainedModel = loaded[0]
    ours = isinstance(getattr(model, "hf_quantizer", None), SnapfitQuantizer)
    _check_complete(folder, loaded[1], ours=ours)
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    return model


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        SnapfitError: the folder has none, or it cannot be read.

    """
    folder = _folder(path)
    if not any(folder.glob("*token*")) and not any(folder.glob("vocab*")):
        raise SnapfitError(
            f"{folder} has no tokenizer; copy tokenizer.json and tokenizer_config.json of the "
            "model into it"
        )
    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise SnapfitError(f"cannot read the tokenizer of {folder}: {_one_line(error)}") from error


def _folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise SnapfitError(f"no model folder {str(path)!r}")
    if not (folder / "config.json").is_file():
        raise SnapfitError(f"{folder} has no config.json, so it is no model folder")
    return folder


def _described(folder: Path) -> PreTrainedConfig | None:
    """The configuration of a 'standalone' checkpoint as a factored one's; None for all others.

    The two describe the same model, so the code that lies in the folder need not run.
    """
    raw = read_json(folder / "config.json")
    if not isinstance(raw, dict) or KEY not in raw:
        return None
    if not isinstance(raw[KEY], dict) or raw.get("model_type") not in CONFIG_MAPPING:
        raise CorruptFile(f"{folder / 'config.json'} has a malformed entry {KEY!r}; copy it again")
    raw["quantization_config"] = raw.pop(KEY)
    raw.pop("auto_map", None)
    config: PreTrainedConfig = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    return config


def _check_complete(folder: Path, info: dict[str, Any], *, ours: bool) -> None:
    misfits = sorted(entry[0] for entry in info["mismatched_keys"])
    # A dense checkpoint may carry more than the model reads; one of ours never does.
    extra = sorted(info["unexpected_keys"]) if ours else []
    for problem, names in (
        ("lacks", sorted(info["missing_keys"])),
        ("has the wrong shape for", misfits),
        ("has no place for", extra),
    ):
        if names:
            shown = ", ".join(names[:SHOWN])
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise CorruptFile(f"{folder} {problem} {shown}{more}; copy the checkpoint again")


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
