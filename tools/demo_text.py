"""Print the text that `make demo` measures perplexity on: procedural, held out from training."""

from __future__ import annotations

import argparse

from snapfit.evals.procedural import text_lines


def main() -> None:
    """Print `--lines` lines drawn with `--seed`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for line in text_lines(arguments.seed, arguments.lines):
        print(line)


if __name__ == "__main__":
    main()
