"""Calibration tokens: fixed windows of ids from a file, a data set or the model itself.

Windows are contiguous pieces of the tokenised text, evenly spread over it, *without* a
beginning-of-sequence token, as in the calibration of GPTQ, SVD-LLM and ASVD: a window stands for
the middle of a text, where nearly all tokens of real use are. Documents of a source are joined by
the end-of-sequence token (two line breaks when there is none). Windows that the model generates
itself do begin with its BOS token, because it needs something to begin with. Whole windows are
shared out among several sources by weight, and mixed.

Shape suffixes: B windows, T tokens of a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from snapfit.calib.mixture import is_there, mixing_order, parse_sources, shares
from snapfit.calib.sources import dataset, jsonl, self_generated, text
from snapfit.calib.sources.self_generated import Written, is_self
from snapfit.calib.sources.turns import THINKING
from snapfit.core.errors import SnapfitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from snapfit.nn.sweep import Progress

ModelLoader = Callable[[], "PreTrainedModel"]
"""Loads the whole model, for generation; called only for the source 'self'."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """Calibration windows.

    Attributes:
        ids_BT: int64 token ids.
        source: where they come from, as the user said it.
        requested: tokens that were asked for.
        seen: tokens of the source that were read; of generated ones, those that count.
        notes: what a reader of the report should know.
        mask_BT: bool, which tokens count; the others are only read, so that those that count
            have their context. None where all count.

    """

    ids_BT: Tensor
    source: str
    requested: int
    seen: int
    notes: tuple[str, ...] = ()
    mask_BT: Tensor | None = None

    @property
    def used(self) -> int:
        """Tokens in the windows that count."""
        return self.ids_BT.numel() if self.mask_BT is None else int(self.mask_BT.sum())

    @property
    def truncated(self) -> int:
        """Tokens of the source that are in no window."""
        return max(self.seen - self.used, 0)

    @property
    def digest(self) -> str:
        """SHA-256 (16 hex digits) of the windows and their mask."""
        shape = ",".join(map(str, self.ids_BT.shape))
        sha = hashlib.sha256(shape.encode() + self.ids_BT.numpy().tobytes())
        if self.mask_BT is not None:
            sha.update(b"mask" + self.mask_BT.numpy().tobytes())
        return sha.hexdigest()[:16]


def load_tokens(
    spec: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    model_loader: ModelLoader,
    vocab_size: int,
    count: int,
    context: int,
    seed: int,
    template: str = "none",
    progress: Progress | None = None,
) -> Tokens:
    """Calibration windows from `spec`.

    Args:
        spec: a text file, a .jsonl file, 'self', 'self:PROMPTS.jsonl', a `datasets`
            NAME[:CONFIG][:SPLIT], or several with weights (see `calib.mixture`).
        tokenizer: of the model; None is allowed for 'self' without a template.
        model_loader: loads the model, for 'self'.
        vocab_size: rows of the model's embedding table.
        count: tokens wanted; rounded to whole windows.
        context: tokens a window.
        seed: of the model's samples.
        template: 'thinking': 'self' answers through its chat template; only answers count.
        progress: told ('generate', tokens, total) by 'self'.

    Raises:
        UsageError: `count` or `context` is not positive, a malformed mixture, or a template
            without a source that it is for.
        SnapfitError: no such file, too little text, no tokenizer, ids outside the embedding table.

    """
    if context < 2:
        raise UsageError(f"a context of {context} tokens is too short; use 2 or more")
    if count < context:
        raise UsageError(f"{count} calibration tokens are less than one window of {context}")
    sources = parse_sources(spec)
    if template == THINKING and not any(is_self(part.spec) for part in sources):
        raise UsageError(f"--calib-template {template} is for --calib self, not for {spec}")
    counts = shares(sources, max(1, round(count / context)))
    found = []
    for part, windows in zip(sources, counts, strict=True):
        if is_self(part.spec):
            written = self_generated.windows(
                model_loader,
                windows=windows,
                context=context,
                seed=seed,
                spec=part.spec,
                template=template == THINKING,
                tokenizer=tokenizer,
                progress=progress,
            )
            _check_range(written.ids_BT, part.spec, tokenizer, vocab_size)
            found.append(_own(written, part.spec, windows * context))
        elif tokenizer is None:
            raise SnapfitError(
                f"the model has no tokenizer, so {part.spec} cannot be read; "
                f"add tokenizer.json to its folder or use --calib {self_generated.NAME}"
            )
        else:
            found.append(_read(part.spec, tokenizer, vocab_size, windows, context))
    return found[0] if len(found) == 1 else _mixed(spec, found, count)


def _own(written: Written, spec: str, requested: int) -> Tokens:
    mask_BT, notes = written.mask_BT, written.notes
    total = written.ids_BT.numel()
    counted = total if mask_BT is None else int(mask_BT.sum())
    if counted < total:
        notes = (*notes, f"{counted} of {total} tokens are the model's answers; only these count")
    return Tokens(
        ids_BT=written.ids_BT,
        source=spec,
        requested=requested,
        seen=counted,
        notes=notes,
        mask_BT=mask_BT,
    )


def _read(
    spec: str,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    windows: int,
    context: int,
) -> Tokens:
    limit = _limit(spec, windows * context)
    stream = _tokenise(_documents(spec, tokenizer), tokenizer, limit=limit)
    if len(stream) < context:
        raise SnapfitError(
            f"{spec} has {len(stream)} tokens, less than one window of {context}; "
            "give more text or a shorter context"
        )
    _check_range(stream, spec, tokenizer, vocab_size)
    available = min(windows, len(stream) // context)
    notes: tuple[str, ...] = ()
    if available < windows:
        notes = (f"{spec} has {len(stream)} tokens only, {windows * context} were asked for",)
    return Tokens(
        ids_BT=_spread(stream, available, context),
        source=spec,
        requested=windows * context,
        seen=len(stream),
        notes=notes,
    )


def _mixed(spec: str, found: list[Tokens], requested: int) -> Tokens:
    """The windows of several sources, mixed so that the first ones stand for all."""
    order = mixing_order(tuple(len(part.ids_BT) for part in found))
    mask_BT = None
    if any(part.mask_BT is not None for part in found):
        masks = [
            torch.ones_like(part.ids_BT, dtype=torch.bool) if part.mask_BT is None else part.mask_BT
            for part in found
        ]
        mask_BT = torch.stack([masks[source][window] for source, window in order])
    return Tokens(
        ids_BT=torch.stack([found[source].ids_BT[window] for source, window in order]),
        source=spec,
        requested=requested,
        seen=sum(part.seen for part in found),
        notes=tuple(note for part in found for note in part.notes),
        mask_BT=mask_BT,
    )


def _documents(spec: str, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    path = Path(spec)
    found = is_there(path)
    if found and path.is_dir():
        raise SnapfitError(f"{spec} is a folder; give a text or .jsonl file")
    looks_like_file = path.suffix in text.SUFFIXES | jsonl.SUFFIXES or spec.startswith((".", "/"))
    if found or looks_like_file:
        if not found:
            raise SnapfitError(f"no such calibration file: {spec}")
        if path.suffix in jsonl.SUFFIXES:
            return jsonl.documents(path, tokenizer)
        return text.documents(path, tokenizer)
    return dataset.documents(spec, tokenizer)


def _limit(spec: str, count: int) -> int | None:
    """Files are read whole; of a data set, which may be endless, eight times what is needed."""
    return None if is_there(Path(spec)) else 8 * count


def _tokenise(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, limit: int | None
) -> Tensor:
    separator: list[int] = (
        [tokenizer.eos_token_id]
        if isinstance(tokenizer.eos_token_id, int)
        else tokenizer.encode("\n\n", add_special_tokens=False)
    )
    ids: list[int] = []
    for document in documents:
        if ids:
            ids += separator
        # verbose=False: a text longer than the model's context is what we want here.
        ids += tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
        if limit is not None and len(ids) >= limit:
            break
    return torch.tensor(ids, dtype=torch.int64)


def _check_range(
    stream: Tensor, spec: str, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int
) -> None:
    low, high = int(stream.min()), int(stream.max())
    if low >= 0 and high < vocab_size:
        return
    outside = high if high >= vocab_size else low
    reason = f"token id {outside} of {spec} is outside the model's {vocab_size} embeddings"
    if tokenizer is not None and len(tokenizer) > vocab_size:
        reason += f"; the tokenizer has {len(tokenizer)} entries: it belongs to another model"
    raise SnapfitError(reason)


def _spread(stream: Tensor, windows: int, context: int) -> Tensor:
    """Windows (B, T) whose starts are evenly spread from the first to the last possible one."""
    last = len(stream) - context
    starts = [round(i * last / max(windows - 1, 1)) for i in range(windows)]
    return torch.stack([stream[start : start + context] for start in starts])
