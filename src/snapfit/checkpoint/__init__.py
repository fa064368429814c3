"""Saving and loading factored checkpoints, and the transformers plug-in."""
