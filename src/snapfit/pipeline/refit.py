"""The optional stage between plan and slice: fit the factors to the compressed model's inputs.

The layers are gone through once, from the first to the last, with two hidden states over the
calibration tokens: the dense model's and the compressed one's. What has been refit so far is part
of the compressed model when the next layer is fitted. See `snapfit.nn.refit` for the formula.

A layer leaves one file of factors, and, until the next one is done, the two states that the next
layer starts from; they are written first, so a killed job loses at most one layer.

Shape suffixes: B sequences, T tokens, D hidden size, M output features, N inputs, R rank.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from snapfit.core.plan import Plan
from snapfit.core.space import Group
from snapfit.nn.refit import (
    DAMPING,
    STEP,
    Drift,
    corrected_weight,
    observe_both,
    refit_pair,
    with_weights,
)
from snapfit.nn.sweep import observe_layer
from snapfit.nn.tensorfile import open_tensors, save_tensors
from snapfit.pipeline.job import Job

FISHER = "grad_second_moment"

Pair = tuple[Tensor, Tensor]
"""a (R, N) and b (M, R) in the dtype of the checkpoint."""

Pairs = Callable[[int, str, int], Pair]
"""(layer, group, rank) -> its factor pair."""


def refit(job: Job, plan: Plan) -> Pairs:
    """Refit all factors of `plan`, or continue, or find them in the work folder.

    Groups that cannot be refit (experts: their tokens differ between the two models) keep the
    factors of the ordered bases.

    Raises:
        SnapfitError: the disk is full, or a hidden state is not finite.

    """
    depends = {
        "ordered": job.store.folder.name,
        "sizes": dict(plan.sizes),
        "tokens": job.tokens.digest,
        "step": STEP,
        "damping": DAMPING,
    }
    run = _Refit(job=job, plan=plan, folder=job.workspace.folder("refit", depends))
    with job.clock("refit"):
        run.complete()
    return run.pair


@dataclass(frozen=True, kw_only=True)
class _Refit:
    """One refit in its folder."""

    job: Job
    plan: Plan
    folder: Path

    def pair(self, layer: int, group: str, rank: int) -> Pair:
        """The refit pair of a group, or that of the ordered bases where it was left alone."""
        with open_tensors(self._factors(layer)) as stored:
            if f"{group}/a" in stored.keys():  # noqa: SIM118 - not a mapping
                return stored.get_tensor(f"{group}/a"), stored.get_tensor(f"{group}/b")
        return self.job.store.factors(layer, group, rank)

    def complete(self) -> None:
        """Refit every layer that has no file yet."""
        job, depth = self.job, len(self.job.stream)
        todo = [index for index in range(depth) if not self._factors(index).exists()]
        if todo:
            start, dense_BTD, compressed_BTD = self._state(todo[0])
            job.progress.stage("refit", depth)
            job.progress.advance(start)
            for index in range(start, depth):
                self._layer(index, dense_BTD, compressed_BTD, last=index == depth - 1)
                job.progress.advance()
        shutil.rmtree(self.folder / "state", ignore_errors=True)

    def _state(self, index: int) -> tuple[int, Tensor, Tensor]:
        """The first layer to do, and the inputs of it in the dense and the compressed model."""
        path = self._hidden(index)
        if index > 0 and path.exists():
            with open_tensors(path) as stored:
                # Copies of their own: they will be written to.
                return index, stored.get_tensor("dense").clone(), stored.get_tensor("other").clone()
        hidden_BTD = self.job.stream.embed(self.job.tokens.ids_BT)
        return 0, hidden_BTD, hidden_BTD.clone()

    @torch.no_grad()
    def _layer(self, index: int, dense_BTD: Tensor, compressed_BTD: Tensor, *, last: bool) -> None:
        """Refit one layer; both states become its outputs, in place, unless it is the last."""
        stream, sizes = self.job.stream, self.plan.sizes
        groups = [g for g in self.job.layers.get(index, []) if sizes[g.name] < g.full]
        pairs = {g.name: self.job.store.factors(index, g.name, sizes[g.name]) for g in groups}
        refitted: dict[str, Pair] = {}
        with stream.layer(index) as layer:
            weights = self._weights(index, layer, groups, pairs)
            if groups:
                modules = {group.matrices[0].name for group in groups}
                drifts = observe_both(
                    stream,
                    index,
                    layer,
                    dense_BTD,
                    compressed_BTD,
                    weights,
                    modules,
                    mask_BT=self.job.tokens.mask_BT,
                )
                refitted = self._fit(index, layer, groups, drifts)
                weights = self._weights(index, layer, groups, {**pairs, **refitted})
            elif not last:
                observe_layer(stream, index, layer, dense_BTD, None)
            if not last:
                with with_weights(layer, weights):
                    observe_layer(stream, index, layer, compressed_BTD, None)
        if not last:
            save_tensors(self._hidden(index + 1), {"dense": dense_BTD, "other": compressed_BTD})
        a = {f"{name}/a": a_RN for name, (a_RN, _) in refitted.items()}
        b = {f"{name}/b": b_MR for name, (_, b_MR) in refitted.items()}
        # The scalar is there because a file without tensors cannot be read back.
        tokens = torch.tensor(self.job.tokens.ids_BT.numel())
        save_tensors(self._factors(index), {"tokens": tokens, **a, **b})
        self._hidden(index).unlink(missing_ok=True)

    def _fit(
        self, index: int, layer: nn.Module, groups: Sequence[Group], drifts: dict[str, Drift]
    ) -> dict[str, Pair]:
        """Refit pairs by group, of the modules that have a drift."""
        # What the method itself weighs outputs by; not what happens to be in the work folder.
        statistics = self.job.statistics if FISHER in self.job.method.needs else None
        seen = statistics.layer(index) if statistics else {}
        found: dict[str, Pair] = {}
        for module, drift in drifts.items():
            moment_NN, drift_NN = drift.means()
            corrected_MN = corrected_weight(
                self._weight(index, layer, module),
                moment_NN,
                drift_NN,
                step=STEP,
                damping=DAMPING,
            )
            for group in groups:
                matrix = group.matrices[0]
                if matrix.name == module:
                    rows = slice(matrix.start, matrix.start + matrix.rows)
                    fisher_MM = seen[module][FISHER][rows, rows] if statistics else None
                    a_RN, b_MR = refit_pair(
                        corrected_MN[rows], moment_NN, fisher_MM, self.plan.sizes[group.name]
                    )
                    dtype = self.job.source.dtype
                    found[group.name] = a_RN.to(dtype), b_MR.to(dtype)
        return found

    def _weights(
        self, index: int, layer: nn.Module, groups: Sequence[Group], pairs: dict[str, Pair]
    ) -> dict[str, Tensor]:
        """Weights of the compressed layer, by their names in the layer: b a in place of W."""
        weights: dict[str, Tensor] = {}
        for group in groups:
            matrix = group.matrices[0]
            name = self._inner(index, matrix.name)
            if name not in weights:
                weights[name] = layer.get_parameter(name).detach().clone()
            a_RN, b_MR = pairs[group.name]
            rows = slice(matrix.start, matrix.start + matrix.rows)
            weights[name][rows] = b_MR.to(weights[name]) @ a_RN.to(weights[name])
        return weights

    def _weight(self, index: int, layer: nn.Module, module: str) -> Tensor:
        return layer.get_parameter(self._inner(index, module)).detach().cpu()

    def _inner(self, index: int, module: str) -> str:
        return f"{module.removeprefix(f'{self.job.stream.prefix(index)}.')}.weight"

    def _factors(self, index: int) -> Path:
        return self.folder / f"layer_{index:03d}.safetensors"

    def _hidden(self, index: int) -> Path:
        return self.folder / "state" / f"hidden_{index:03d}.safetensors"
