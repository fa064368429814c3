"""Torch primitives without policy."""
