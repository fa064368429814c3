"""HiGHS as the oracle for the knapsack: the same problem as a mixed-integer program."""

from __future__ import annotations

from collections.abc import Sequence

import highspy
import numpy as np

from snapfit.core.knapsack import Item


def optimum(
    items: Sequence[Item], budgets: Sequence[int], ties: Sequence[Sequence[str]] = ()
) -> float | None:
    """The least loss, or None when no answer fits. One binary variable a choice."""
    model = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("mip_rel_gap", 0.0),
        ("mip_abs_gap", 0.0),
        ("mip_feasibility_tolerance", 1e-9),
        ("threads", 1),
    ):
        model.setOptionValue(option, value)
    columns: dict[tuple[str, int], int] = {}
    losses: list[float] = []
    for item in items:
        for size, loss in zip(item.sizes, item.losses, strict=True):
            columns[item.name, int(size)] = len(losses)
            losses.append(float(loss))
    for loss in losses:
        model.addVar(0.0, 1.0)
        column = model.getNumCol() - 1
        model.changeColCost(column, loss)
        model.changeColIntegrality(column, highspy.HighsVarType.kInteger)
    for item in items:
        own = [columns[item.name, int(size)] for size in item.sizes]
        model.addRow(1.0, 1.0, len(own), np.array(own), np.ones(len(own)))
    everything = np.arange(len(losses))
    for row, budget in enumerate(budgets):
        costs = np.concatenate([item.costs[:, row] for item in items]).astype(np.float64)
        model.addRow(-highspy.kHighsInf, float(budget), len(losses), everything, costs)
    sizes = {item.name: {int(size) for size in item.sizes} for item in items}
    for tie in ties:
        for name in tie[1:]:
            for size in sizes[tie[0]] | sizes[name]:
                pair = [columns[key, size] for key in (tie[0], name) if size in sizes[key]]
                signs = [1.0, -1.0][: len(pair)]
                model.addRow(0.0, 0.0, len(pair), np.array(pair), np.array(signs))
    model.run()
    if model.getModelStatus() == highspy.HighsModelStatus.kOptimal:
        return float(model.getInfo().objective_function_value)
    assert model.getModelStatus() == highspy.HighsModelStatus.kInfeasible
    return None
