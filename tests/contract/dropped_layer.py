"""The embedded model with a layer taken out by hand: weights, config.json and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from snapfit.models.source import open_model


def without_layer(folder: Path, layer: int) -> Path:
    """Save it in `folder`, in transformers' own format, and return it."""
    source = open_model("embedded").path
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    kept = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            number = int(parts[2])
            if number == layer:
                continue
            parts[2] = str(number - (number > layer))
        kept[".".join(parts)] = tensor
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    if config.get("layer_types"):
        del config["layer_types"][layer]
    (folder / "config.json").write_text(json.dumps(config))
    return folder
