"""One source of problems a file."""
