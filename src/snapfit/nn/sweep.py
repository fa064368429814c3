"""Forward and backward sweeps over a streamed model that a `kill -9` costs at most one layer.

The backward sweep differentiates the summed token loss with respect to the output of every linear
layer. Labels are *sampled* from the model's own prediction at every position, the last one too,
because only then is the mean of g gᵀ the Fisher information (Martens and Grosse, arXiv
1503.05671, section 5); with the text's own tokens it would be the "empirical Fisher", another
matrix. One uniform number a position is drawn up front, so that the labels depend on the seed
alone, not on micro-batches or on how often the job was interrupted.

State on disk, all of it float32 so that a resumed sweep is bit-identical:

    hidden_<i>     input of layer i (B T D). One file in a forward sweep; all of them, until they
                   are used, in a backward one: layers x tokens x width x 4 bytes.
    gradient_<i>   gradient at the input of layer i

Shape suffixes: B sequences, b of a micro-batch, T tokens, t of a chunk, D hidden size, V
vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from snapfit.core.errors import SnapfitError
from snapfit.core.files import readable_bytes
from snapfit.nn.observe import LinearObserver, Seen, with_gradients
from snapfit.nn.stream import LayerStream, micro_batches
from snapfit.nn.tensorfile import open_tensors, save_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

Progress = Callable[[str, int, int], None]
"""(stage, done, total) after each unit of work."""

LOGIT_ELEMENTS = 1 << 23
"""Logits that are in memory at once, which bounds the head's working memory to some 200 MB."""


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
            observe_layer(stream, index, layer, hidden_BTD, visitor, single=single)
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
    single: bool = False,
) -> None:
    """Replace `hidden_BTD`, in place, by the output of `layer` in the place of layer `index`.

    `visitor` sees every micro-batch; its `layer_done` is left to the caller.

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
                visitor.batch(index, seen)
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
    single: bool = False,
    progress: Progress = no_progress,
) -> None:
    """Differentiate the loss of sampled labels, from the head down to the first layer.

    Runs the forward sweep first if `folder` does not hold its results. Each layer is recomputed
    from its stored input; `visitor` sees inputs, outputs and gradients together.

    Args:
        stream: the model.
        ids_BT: token ids.
        visitor: sees every micro-batch.
        folder: of the state; belongs to this sweep alone. Inputs are deleted as they are used.
        seed: of the sampled labels.
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
        gradient_BTD = _head_gradient(stream, hidden_BTD, seed=seed, progress=progress)
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
                visitor.batch(index, with_gradients(seen, gradients))
                # Last: what was seen may be a view of these very rows.
                gradient_BTD[rows] = down_bTD.cpu()
                del output_bTD, seen, gradients
        visitor.layer_done(index)
        _save(folder, "gradient", index, gradient_BTD)
        _path(folder, "gradient", index + 1).unlink(missing_ok=True)
        _path(folder, "hidden", index).unlink(missing_ok=True)
        progress("backward", depth - index, depth)


def sampled_labels(probability_TV: Tensor, uniform_T: Tensor) -> Tensor:
    """One label (T,) a position from its distribution, by inversion of `uniform_T` in [0, 1)."""
    cumulative_TV = probability_TV.cumsum(-1)
    threshold_T1 = (uniform_T.to(cumulative_TV) * cumulative_TV[:, -1])[:, None]
    labels_T = torch.searchsorted(cumulative_TV, threshold_T1, right=True)[:, 0]
    return labels_T.clamp_max(probability_TV.shape[-1] - 1)


def label_noise(sequences: int, tokens: int, seed: int) -> Tensor:
    """The uniform numbers (B, T) that decide all sampled labels of a sweep."""
    return torch.rand(sequences, tokens, generator=torch.Generator().manual_seed(seed))


def _head_gradient(
    stream: LayerStream, hidden_BTD: Tensor, *, seed: int, progress: Progress
) -> Tensor:
    """Gradient (B, T, D) of the summed loss at the last layer's output."""
    sequences, tokens = hidden_BTD.shape[:2]
    uniform_BT = label_noise(sequences, tokens, seed)
    gradient_BTD = torch.empty_like(hidden_BTD)
    vocabulary = int(stream.model.config.get_text_config().vocab_size)
    step = max(1, LOGIT_ELEMENTS // vocabulary)
    with stream.head() as head:
        for row in range(sequences):
            for start in range(0, tokens, step):
                part = slice(start, start + step)
                hidden_tD = hidden_BTD[row, part].to(stream.device).requires_grad_()
                logits_tV = head(hidden_tD[None])[0].float()
                # The gradient of the loss at the logits: probabilities minus one at the label.
                down_tV = logits_tV.detach().softmax(-1)
                labels_t = sampled_labels(down_tV, uniform_BT[row, part])
                down_tV[torch.arange(len(labels_t)), labels_t] -= 1
                (gradient_tD,) = torch.autograd.grad(logits_tV, hidden_tD, down_tV)
                gradient_BTD[row, part] = gradient_tD.cpu()
            progress("head", row + 1, sequences)
    if not torch.isfinite(gradient_BTD).all():
        raise SnapfitError(
            "the gradient at the output of the last layer holds NaN or infinity; "
            "the final norm or the head is broken"
        )
    return gradient_BTD


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
