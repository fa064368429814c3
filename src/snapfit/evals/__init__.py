"""Measurements: perplexity, and procedural text with exact answers."""
