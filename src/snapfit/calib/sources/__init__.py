"""Where calibration text comes from, one kind of source a file."""
