"""What `snapfit targets` lists, without loading torch or reading a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from snapfit.core.errors import SnapfitError
from snapfit.core.shares import ShareRule

AXES = {
    "in": "inputs (K)",
    "out": "outputs (N)",
    "rank": "ranks, N and K",
    "width": "MLP widths",
    "heads": "heads",
}
"""What a rule's axis is called."""


def target_facts() -> list[dict[str, Any]]:
    """Every target by name: its rules, how its times are known, or why it cannot be had."""
    from snapfit.hardware import target_names

    return [_named(name) for name in target_names()]


def targets_table(facts: Sequence[dict[str, Any]]) -> Table:
    """A row a target; the rules in full are in `target_table`."""
    table = Table(title="targets", title_justify="left", min_width=60)
    table.add_column("target", no_wrap=True)
    table.add_column("ranks", justify="right", no_wrap=True)
    table.add_column("else", justify="right", no_wrap=True)
    table.add_column("times, and notes", overflow="fold", ratio=1)
    for fact in facts:
        if not fact["available"]:
            table.add_row(fact["target"], "-", "-", "; ".join(fact["notes"]))
            continue
        costs = [rule["penalty"] for rule in fact["rules"] if rule["penalty"] is not None]
        table.add_row(
            fact["target"],
            f"% {fact['rank_multiple']}",
            f"x{max(costs):.2f}" if costs else "-",
            "; ".join([fact["times"], *fact["notes"]]),
        )
    return table


def target_table(fact: dict[str, Any]) -> Table:
    """Every rule of one target, each with its source."""
    title = f"{fact['target']}: {fact['device']}, {fact['dtype']}; times: {fact['times']}"
    table = Table(title=title, title_justify="left", min_width=60)
    table.add_column("sizes", no_wrap=True)
    table.add_column("multiple of", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold", ratio=1)
    for rule in fact["rules"]:
        share = "" if rule["shares"] == 1 else " a share"
        table.add_row(AXES[rule["axis"]], f"{rule['multiple']}{share}", rule["source"])
    notes = list(fact["notes"])
    if any(rule["shares"] > 1 for rule in fact["rules"]):
        notes.append("of widths and heads each device has a share; of ranks all have all")
    for note in notes:
        table.add_row("note", "", note)
    return table


def target_fact(name: str) -> dict[str, Any]:
    """One target with its stack.

    Raises:
        SnapfitError: there is none such, or it cannot be had.

    """
    from snapfit.hardware import resolve_target

    target = resolve_target(name)
    return {
        "target": target.name,
        "available": True,
        "device": target.device,
        "dtype": target.dtype,
        "rank_multiple": target.rank_multiple,
        "times": target.times or ("of a table or model" if target.timer else "only rules"),
        "formats": list(target.formats),
        "rules": [
            {
                "axis": rule.axis,
                "multiple": rule.multiple,
                "shares": rule.shares if isinstance(rule, ShareRule) else 1,
                "penalty": rule.penalty,
                "measured": rule.measured,
                "source": rule.source,
            }
            for rule in target.rules
        ],
        "software": target.software,
        "notes": list(target.notes),
    }


def _named(name: str) -> dict[str, Any]:
    try:
        return target_fact(name)
    except SnapfitError as error:
        return {"target": name, "available": False, "notes": [str(error)]}
