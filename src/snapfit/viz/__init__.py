"""Figures and the HTML report."""

from __future__ import annotations
