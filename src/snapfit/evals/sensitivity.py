"""Perplexity with a single matrix replaced: the probe of ASVD's sensitivity search.

Shape suffixes: B windows, T tokens of a window, M out, N in, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from snapfit.core.files import read_json, write_json
from snapfit.core.space import Group

IGNORED = -100
"""What transformers takes for a label whose loss does not count."""


class SensitivityProbe:
    """Calibration perplexity of a model in which one group at a time is truncated.

    Results are kept in a file, written after every probe, so a killed search loses at most one.

    Args:
        model: the dense model, already loaded; its weights are restored after every probe.
        ids_BT: calibration windows.
        mask_BT: tokens whose loss counts, some beside the first of every window; all when None.
        factors: gives the factor pair (a, b) of a group at a rank.
        groups: by name.
        memo: where results are kept.

    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        ids_BT: Tensor,
        factors: Callable[[Group, int], tuple[Tensor, Tensor]],
        groups: dict[str, Group],
        memo: Path,
        mask_BT: Tensor | None = None,
    ) -> None:
        self._model = model
        self._ids_BT = ids_BT
        self._labels_BT = ids_BT if mask_BT is None else ids_BT.masked_fill(~mask_BT, IGNORED)
        self._factors = factors
        self._groups = groups
        self._memo = memo
        self._known: dict[str, float] = read_json(memo) if memo.exists() else {}

    @torch.no_grad()
    def __call__(self, name: str, rank: int) -> float:
        """Perplexity with the group `name` at `rank`, everything else dense."""
        key = f"{name}@{rank}"
        if key not in self._known:
            self._known[key] = self._measure(self._groups[name], rank)
            write_json(self._memo, self._known)
        return self._known[key]

    def _measure(self, group: Group, rank: int) -> float:
        matrix = group.matrices[0]
        weight_MN = self._model.get_parameter(f"{matrix.name}.weight")
        rows = slice(matrix.start, matrix.start + matrix.rows)
        original_MN = weight_MN[rows].clone()
        a_RN, b_MR = self._factors(group, rank)
        try:
            weight_MN[rows] = (b_MR.float() @ a_RN.float()).to(weight_MN.dtype)
            losses = [
                float(self._model(input_ids=window_T[None], labels=labels_T[None]).loss)
                for window_T, labels_T in zip(self._ids_BT, self._labels_BT, strict=True)
            ]
        finally:
            weight_MN[rows] = original_MN
        return math.exp(min(sum(losses) / len(losses), 700.0))
