"""Calibration: token sources, and statistics of a model over tokens, streamed."""
