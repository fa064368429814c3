"""`python -m snapfit` is `snapfit`."""

from snapfit.cli import main

if __name__ == "__main__":
    main()
