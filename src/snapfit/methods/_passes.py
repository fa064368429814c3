"""Forward passes that depth methods make: over all windows, over a few pieces, without a module.

Shape suffixes: B windows, S pieces, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snapfit.core.errors import SnapfitError
from snapfit.core.files import read_kept, write_json
from snapfit.nn.tensorfile import open_tensors, save_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from snapfit.methods._depth import DepthView
    from snapfit.nn.stream import LayerStream


def pieces(ids_BT: Tensor, *, samples: int, length: int) -> Tensor:
    """`samples` pieces of at most `length` tokens, equally distant over the windows.

    Windows are first cut into whole pieces; when there are fewer than `samples`, all are taken.
    """
    length = min(length, ids_BT.shape[1])
    cut_ST = ids_BT[:, : ids_BT.shape[1] // length * length].reshape(-1, length)
    count = min(samples, len(cut_ST))
    places = [k * (len(cut_ST) - 1) // max(1, count - 1) for k in range(count)]
    return cut_ST[places]


def scored_pieces(view: DepthView, *, samples: int, length: int) -> tuple[Tensor, Tensor | None]:
    """Pieces of the calibration windows, and which of their tokens count; all when None.

    Raises:
        SnapfitError: no next token of them counts, so that there is no loss to compare.

    """
    ids_ST = pieces(view.ids_BT, samples=samples, length=length)
    if view.mask_BT is None:
        mask_ST, scored = None, ids_ST.shape[1] > 1
    else:
        mask_ST = pieces(view.mask_BT, samples=samples, length=length)
        scored = bool(mask_ST[:, :-1].any())
    if not scored:
        raise SnapfitError(
            f"no token that counts is predicted in {len(ids_ST)} x {ids_ST.shape[1]} calibration "
            "tokens; take more of them (--set samples=N, --set length=N)"
        )
    return ids_ST, mask_ST


@contextlib.contextmanager
def silenced(module: nn.Module) -> Iterator[None]:
    """Let the module answer zeros, as if it were not there, while the block runs."""

    def zero(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    handle = module.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


See = Callable[[int, "nn.Module", Tensor, Tensor], Mapping[str, Tensor]]
"""(layer, module with weights, input (B, T, D), output (B, T, D)) -> what to keep."""


@torch.no_grad()
def observe(view: DepthView, see: See) -> list[dict[str, Tensor]]:
    """Send all windows through all layers, one layer in memory, and keep what `see` makes of them.

    Killed, it continues at the layer where it was.

    Raises:
        SnapfitError: a hidden state is not finite (names the layer), or the disk is full.

    """
    stream, folder = view.stream, view.folder
    states = sorted(folder.glob("hidden_*.safetensors"))
    start = int(states[-1].stem.rpartition("_")[2]) if states else 0
    hidden_BTD = _read(states[-1])["hidden"] if states else stream.embed(view.ids_BT)
    for index in range(start, len(stream)):
        with stream.layer(index) as layer:
            output_BTD = stream.run_layer(index, layer, hidden_BTD)
            seen = see(index, layer, hidden_BTD, output_BTD)
        save_tensors(folder / f"seen_{index:03d}.safetensors", dict(seen))
        hidden_BTD = output_BTD
        save_tensors(folder / f"hidden_{index + 1:03d}.safetensors", {"hidden": hidden_BTD})
        (folder / f"hidden_{index:03d}.safetensors").unlink(missing_ok=True)
        view.progress("layers", index + 1, len(stream))
    return [_read(folder / f"seen_{index:03d}.safetensors") for index in range(len(stream))]


def _read(path: Path) -> dict[str, Tensor]:
    with open_tensors(path) as stored:
        return {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118


@torch.no_grad()
def text_loss(
    stream: LayerStream, hidden_BTD: Tensor, ids_BT: Tensor, mask_BT: Tensor | None = None
) -> float:
    """Mean loss, in nats, of the text's next tokens, from the last layer's output.

    Only positions that count, at least one, are scored; the last of a window has no next token.

    Raises:
        SnapfitError: the loss is not finite.

    """
    total, count = 0.0, 0
    with stream.head() as head:
        for row, hidden_TD in enumerate(hidden_BTD):
            logits_TV = head(hidden_TD[None].to(stream.device))[0, :-1].float()
            labels_T = ids_BT[row, 1:].to(stream.device)
            losses_T = torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction="none")
            if mask_BT is not None:
                losses_T = losses_T[mask_BT[row, :-1].to(stream.device)]
            total += float(losses_T.sum(dtype=torch.float64))
            count += losses_T.numel()
    mean = total / count
    if not math.isfinite(mean):
        raise SnapfitError("the loss on the calibration tokens is not finite; the model is broken")
    return mean


class Memo:
    """Numbers that took long to measure, kept in a file that is written after every one.

    Raises:
        CorruptFile: the file is damaged; says which to delete.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = read_kept(path, _numbers) if path.exists() else {}

    def __call__(self, key: str, measure: Callable[[], float]) -> float:
        """The number of `key`, measured if it is not known."""
        if key not in self._known:
            self._known[key] = measure()
            write_json(self._path, self._known)
        return self._known[key]


def _numbers(value: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(number) for key, number in value.items()}
