"""Forward and backward sweeps over a streamed model that a `kill -9` costs at most one layer.

The backward sweep differentiates the summed token loss with respect to the output of every linear
layer; the labels are sampled from the model or those of the text (`nn.labels`).

State on disk, all of it float32 so that a resumed sweep is bit-identical:

    hidden_<i>     input of layer i (B T D). One file in a forward sweep; all of them, until they
                   are used, in a backward one: layers x tokens x width x 4 bytes.
    gradient_<i>   gradient at the input of layer i

Shape suffixes: B sequences, b of a micro-batch, T tokens, D hidden size.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from snapfit.core.errors import SnapfitError
from snapfit.core.files import readable_bytes
from snapfit.nn.labels import Labels, head_gradient
from snapfit.nn.observe import LinearObserver, Seen, counted, with_gradients
from snapfit.nn.stream import LayerStream, micro_batches
from snapfit.nn.tensorfile import open_tensors, save_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Progress = Callable[[str, int, int], None]
"""(stage, done, total) after each unit of work."""


class Visitor(Protocol):
    """What wants to see every linear layer at work."""

    def layer_started(self, index: int, shapes: dict[str, tuple[int, int]]) -> None:
        """`shapes`: (out, in) of each linear layer that can be seen in decoder layer `index`."""

    def batch(self, index: int, seen: list[Seen]) -> None:
        """A micro-batch went through layer `index`."""

    def layer_done(self, index: int) -> None:
        """All tokens went through; results must be durable on return."""


def no_progress(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""


def forward_sweep(
    stream: LayerStream,
    ids_BT: Tensor,
    visitor: Visitor | None,
    *,
    folder: Path,
    mask_BT: Tensor | None = None,
    keep: bool = False,
    single: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Send all tokens through all layers; continue where an earlier run was interrupted.

    Args:
        stream: the model.
        ids_BT: token ids.
        visitor: sees every micro-batch; None only propagates.
        folder: of the state; belongs to this sweep alone.
        mask_BT: which tokens `visitor` sees; all when None.
        keep: leave every layer's input on disk for a backward sweep.
        single: micro-batches of one sequence.
        progress: told ('forward', layers done, layers).

    Raises:
        SnapfitError: a hidden state is not finite (names the layer), or the disk is full.

    """
    start = _last_state(folder, "hidden")
    if start is None:
        hidden_BTD, start = stream.embed(ids_BT), 0
        _require_space(folder, hidden_BTD, copies=len(stream) + 1 if keep else 2)
        _save(folder, "hidden", 0, hidden_BTD)
    else:
        hidden_BTD = _load(folder, "hidden", start)
    for index in range(start, len(stream)):
        with stream.layer(index) as layer:
            observe_layer(stream, index, layer, hidden_BTD, visitor, mask_BT=mask_BT, single=single)
        if visitor is not None:
            visitor.layer_done(index)
        _save(folder, "hidden", index + 1, hidden_BTD)
        if not keep:
            _path(folder, "hidden", index).unlink(missing_ok=True)
        progress("forward", index + 1, len(stream))


@torch.no_grad()
def observe_layer(
    stream: LayerStream,
    index: int,
    layer: nn.Module,
    hidden_BTD: Tensor,
    visitor: Visitor | None,
    *,
    mask_BT: Tensor | None = None,
    single: bool = False,
) -> None:
    """Replace `hidden_BTD`, in place, by the output of `layer` in the place of layer `index`.

    `visitor` sees every micro-batch, or what `mask_BT` leaves of it; `layer_done` is up to the
    caller.

    Raises:
        SnapfitError: the output is not finite.

    """
    with LinearObserver(layer, stream.prefix(index)) as observer:
        if visitor is not None:
            visitor.layer_started(index, observer.shapes)
        for rows in micro_batches(*hidden_BTD.shape[:2], single=single):
            output_bTD = stream.call_layer(index, layer, hidden_BTD[rows].to(stream.device))
            stream.require_finite(output_bTD, index, "output", layer)
            seen = observer.take()
            if visitor is not None:
                visitor.batch(index, seen if mask_BT is None else counted(seen, mask_BT[rows]))
            # Last: what was seen may be a view of these very rows.
            hidden_BTD[rows] = output_bTD.cpu()
            del seen, output_bTD


def backward_sweep(
    stream: LayerStream,
    ids_BT: Tensor,
    visitor: Visitor,
    *,
    folder: Path,
    seed: int,
    labels: Labels = "sampled",
    mask_BT: Tensor | None = None,
    single: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Differentiate the loss, from the head down to the first layer.

    Runs the forward sweep first if `folder` does not hold its results. Each layer is recomputed
    from its stored input; `visitor` sees inputs, outputs and gradients together.

    Args:
        stream: the model.
        ids_BT: token ids.
        visitor: sees every micro-batch.
        folder: of the state; belongs to this sweep alone. Inputs are deleted as they are used.
        seed: of the sampled labels.
        labels: sampled from the model's own prediction, or the text's next tokens.
        mask_BT: tokens whose loss is summed, and which `visitor` sees; all when None.
        single: micro-batches of one sequence.
        progress: told ('forward' | 'head' | 'backward', done, total).

    Raises:
        SnapfitError: a hidden state or gradient is not finite (names the layer); disk full.

    """
    depth = len(stream)
    top = _first_state(folder, "gradient")
    if top is None:
        forward_sweep(stream, ids_BT, None, folder=folder, keep=True, progress=progress)
        hidden_BTD = _load(folder, "hidden", depth)
        gradient_BTD = head_gradient(
            stream, hidden_BTD, ids_BT, labels=labels, seed=seed, progress=progress
        )
        if mask_BT is not None:
            gradient_BTD[~mask_BT] = 0
        del hidden_BTD
        top = depth
        _save(folder, "gradient", top, gradient_BTD)
        _path(folder, "hidden", top).unlink(missing_ok=True)
    else:
        gradient_BTD = _load(folder, "gradient", top)
    for index in reversed(range(top)):
        with (
            stream.layer(index) as layer,
            LinearObserver(layer, stream.prefix(index)) as observer,
            open_tensors(_path(folder, "hidden", index)) as stored,
        ):
            visitor.layer_started(index, observer.shapes)
            hidden_BTD = stored.get_slice("value")
            for rows in micro_batches(*ids_BT.shape, single=single):
                hidden_bTD = hidden_BTD[rows.start : rows.stop].to(stream.device).requires_grad_()
                output_bTD = stream.call_layer(index, layer, hidden_bTD)
                seen = observer.take()
                down_bTD, *gradients = torch.autograd.grad(
                    output_bTD,
                    [hidden_bTD, *(call.y for call in seen)],
                    gradient_BTD[rows].to(stream.device),
                    allow_unused=True,
                    materialize_grads=True,
                )
                stream.require_finite(down_bTD, index, "gradient", layer)
                seen = with_gradients(seen, gradients)
                visitor.batch(index, seen if mask_BT is None else counted(seen, mask_BT[rows]))
                # Last: what was seen may be a view of these very rows.
                gradient_BTD[rows] = down_bTD.cpu()
                del output_bTD, seen, gradients
        visitor.layer_done(index)
        _save(folder, "gradient", index, gradient_BTD)
        _path(folder, "gradient", index + 1).unlink(missing_ok=True)
        _path(folder, "hidden", index).unlink(missing_ok=True)
        progress("backward", depth - index, depth)


def _path(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}_{index:03d}.safetensors"


def _save(folder: Path, kind: str, index: int, value: Tensor) -> None:
    save_tensors(_path(folder, kind, index), {"value": value})


def _load(folder: Path, kind: str, index: int) -> Tensor:
    with open_tensors(_path(folder, kind, index)) as stored:
        value: Tensor = stored.get_tensor("value")
    return value.clone()  # a copy of its own: it will be written to


def _states(folder: Path, kind: str) -> list[int]:
    return sorted(
        int(path.stem.rpartition("_")[2]) for path in folder.glob(f"{kind}_*.safetensors")
    )


def _last_state(folder: Path, kind: str) -> int | None:
    return max(_states(folder, kind), default=None)


def _first_state(folder: Path, kind: str) -> int | None:
    return min(_states(folder, kind), default=None)


def _require_space(folder: Path, hidden_BTD: Tensor, *, copies: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = hidden_BTD.numel() * hidden_BTD.element_size() * copies
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SnapfitError(
            f"{folder} has {readable_bytes(free)} free and the hidden states of {copies} layers "
            f"need {readable_bytes(needed)}; free space, use fewer calibration tokens or another "
            "work folder"
        )
