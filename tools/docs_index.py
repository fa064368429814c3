"""Write the list of methods into docs/methods.md, between its two markers."""

from __future__ import annotations

from pathlib import Path

from snapfit.cli.catalogue import method_names, method_summary

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
BEGIN, END = "<!-- methods: begin -->\n", "<!-- methods: end -->\n"


def rewritten(page: str) -> str:
    """`page` with the list between the markers made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [f"| `{name}` | {method_summary(name)} |\n" for name in method_names()]
    return "".join([before, BEGIN, "| method | what it does |\n|---|---|\n", *rows, END, after])


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
