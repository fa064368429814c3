"""The docs say what the code says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from snapfit.cli.catalogue import method_names
from snapfit.core.options import OBJECTIVES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])

sys.path.insert(0, str(ROOT / "tools"))

from docs_index import rewritten  # noqa: E402 - the tool that writes the list


def test_methods_page_lists_every_method() -> None:
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert rewritten(page) == page, "run: python tools/docs_index.py"
    assert all(f"| `{name}` |" in page for name in (*method_names(), *OBJECTIVES))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
