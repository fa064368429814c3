"""Correct the curves by what truncation really costs, role by role.

A curve predicts the loss of truncating one matrix alone. Matrices of one role, truncated together
over all layers, cost more than the sum, and not equally so: on SmolLM2-135M at ratio 0.2 the
divergence from the original model was 2.7 times the prediction for queries and keys, 1.5 times
for attention outputs. So the divergence is measured with one role truncated at a time to the sizes
of a first plan, the role's curves are scaled to agree, and the plan is made again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from snapfit.core.files import read_kept, write_json
from snapfit.core.space import Group
from snapfit.evals.divergence import divergences
from snapfit.pipeline.job import Job
from snapfit.pipeline.windows import windows_of

TOKENS = 4_096
"""Calibration tokens that are measured on, in windows spread over all of them."""

LEAST_LOSS = 1e-4
"""Nats; a role that is predicted to cost less is not measured: rounding would decide."""


def role_corrections(job: Job, sizes: Mapping[str, int]) -> dict[str, float]:
    """Measured over predicted loss of every role, at `sizes`.

    Roles that `sizes` hardly truncates get the geometric mean of the measured ones.

    Raises:
        SnapfitError: the dense model cannot be loaded; it is needed in memory, in float32.
    """
    depends = {"ordered": job.store.folder.name, "sizes": dict(sizes), "tokens": TOKENS}
    kept = job.workspace.folder("probe", depends) / "roles.json"
    if not kept.exists():
        with job.clock("probe"):
            write_json(kept, _measure(job, sizes))
    roles = {group.role for group in job.space.groups}
    return read_kept(kept, lambda found: {role: float(found[role]) for role in roles})


def _measure(job: Job, sizes: Mapping[str, int]) -> dict[str, float]:
    by_role: dict[str, list[Group]] = {}
    for group in job.space.groups:
        by_role.setdefault(group.role, []).append(group)
    predicted = {
        role: sum(float(job.curves[group.name].at(sizes[group.name])) for group in groups)
        for role, groups in by_role.items()
    }
    probed = {role: groups for role, groups in by_role.items() if predicted[role] > LEAST_LOSS}
    if not probed:
        return dict.fromkeys(by_role, 1.0)
    model = job.dense_model()
    context = job.options.context
    ids_BT, mask_BT = windows_of(job, max(1, TOKENS // context), context)
    job.progress.stage("probe", len(ids_BT))
    variants = {role: _truncated(job, groups, sizes, model) for role, groups in probed.items()}
    measured = divergences(model, ids_BT, variants, job.progress.advance, mask_BT=mask_BT)
    factors = {role: max(measured[role], LEAST_LOSS) / predicted[role] for role in probed}
    typical = math.exp(sum(math.log(factor) for factor in factors.values()) / len(factors))
    return {role: factors.get(role, typical) for role in by_role}


def _truncated(
    job: Job, groups: list[Group], sizes: Mapping[str, int], model: torch.nn.Module
) -> dict[str, Tensor]:
    """Dense weights that compute what the factor pairs of `groups` would."""
    weights: dict[str, Tensor] = {}
    for group in groups:
        if sizes[group.name] == group.full:
            continue
        matrix = group.matrices[0]
        name = f"{matrix.name}.weight"
        weight_MN = weights.setdefault(name, model.get_parameter(name).data.clone())
        a_RN, b_MR = job.store.factors(group.layer, group.name, sizes[group.name])
        weight_MN[matrix.start : matrix.start + matrix.rows] = b_MR.float() @ a_RN.float()
    return weights
