"""The HTML report: one file, no scripts, nothing fetched, light or dark as the reader prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from snapfit.core.curve import Curve
from snapfit.core.files import atomic_path
from snapfit.core.plan import Plan
from snapfit.core.space import Space
from snapfit.viz.canvas import available
from snapfit.viz.figures import curves_picture, sizes_picture
from snapfit.viz.pages import environment
from snapfit.viz.summary import by_role, facts, families, figures, stages


def write_report(
    path: Path,
    *,
    report: Mapping[str, Any],
    plan: Plan,
    space: Space,
    curves: Mapping[str, Curve] | None = None,
    warnings: Sequence[str] = (),
) -> None:
    """Write the report as a page.

    Args:
        path: the file to write.
        report: the content of `report.json`.
        plan: what was decided.
        space: the groups that the plan decides.
        curves: of every group; without them no loss is shown by role, and no curve drawn.
        warnings: what the reader should know before trusting the figures.

    Raises:
        SnapfitError: the file cannot be written.

    """
    page = render(report=report, plan=plan, space=space, curves=curves, warnings=warnings)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(
    *,
    report: Mapping[str, Any],
    plan: Plan,
    space: Space,
    curves: Mapping[str, Curve] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """The page that `write_report` writes."""
    pictures: dict[str, Markup] = {}
    if available():
        # Drawn by matplotlib, which escapes the names that it writes.
        pictures["sizes"] = Markup(sizes_picture(space, plan))  # noqa: S704
        if curves is not None:
            pictures["curves"] = Markup(curves_picture(space, plan, curves))  # noqa: S704
    return (
        environment()
        .get_template("report.html")
        .render(
            title=f"{plan.model}, compressed by snapfit",
            plan=plan,
            figures=figures(report),
            reasoning=report.get("reasoning"),
            families=families(report),
            stages=stages(report),
            facts=facts(report, plan),
            roles=by_role(space, plan, curves),
            unit=next(iter(curves.values())).unit if curves else "",
            pictures=pictures,
            drawn=available(),
            warnings=warnings,
            environment={
                key: value for key, value in report.get("environment", {}).items() if value
            },
        )
    )
