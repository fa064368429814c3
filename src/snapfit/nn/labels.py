"""The loss whose gradient a backward sweep follows: whose labels, and its gradient at the head.

*Sampled* labels come from the model's own prediction at every position, the last one too: only
then is the mean of g gᵀ the Fisher information (Martens and Grosse, arXiv 1503.05671, section 5);
with the text's own tokens it would be the "empirical Fisher", another matrix. One uniform number a
position is drawn up front, so that the labels depend on the seed alone, not on micro-batches or on
how often the job was interrupted.

The *text's* own next tokens are for first-order terms such as w * dL/dw (LLM-Pruner, arXiv
2305.11627), whose mean over sampled labels is zero. The last position of a window has none.

Shape suffixes: B sequences, T tokens, t of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from snapfit.core.errors import SnapfitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from snapfit.nn.stream import LayerStream

Labels = Literal["sampled", "text"]

LOGIT_ELEMENTS = 1 << 23
"""Logits that are in memory at once, which bounds the head's working memory to some 200 MB."""


def sampled_labels(probability_TV: Tensor, uniform_T: Tensor) -> Tensor:
    """One label (T,) a position from its distribution, by inversion of `uniform_T` in [0, 1)."""
    cumulative_TV = probability_TV.cumsum(-1)
    threshold_T1 = (uniform_T.to(cumulative_TV) * cumulative_TV[:, -1])[:, None]
    labels_T = torch.searchsorted(cumulative_TV, threshold_T1, right=True)[:, 0]
    return labels_T.clamp_max(probability_TV.shape[-1] - 1)


def label_noise(sequences: int, tokens: int, seed: int) -> Tensor:
    """The uniform numbers (B, T) that decide all sampled labels of a sweep."""
    return torch.rand(sequences, tokens, generator=torch.Generator().manual_seed(seed))


def head_gradient(
    stream: LayerStream,
    hidden_BTD: Tensor,
    ids_BT: Tensor,
    *,
    labels: Labels,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> Tensor:
    """Gradient (B, T, D) of the summed loss at the last layer's output.

    Args:
        stream: the model.
        hidden_BTD: output of the last layer.
        ids_BT: token ids, for the text's own labels.
        labels: whose labels.
        seed: of the sampled ones.
        progress: told ('head', sequences done, sequences).

    Raises:
        SnapfitError: the gradient is not finite.

    """
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
                if labels == "sampled":
                    labels_t = sampled_labels(down_tV, uniform_BT[row, part])
                else:
                    labels_t = ids_BT[row, start + 1 : start + 1 + step].to(stream.device)
                    down_tV[len(labels_t) :] = 0
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
