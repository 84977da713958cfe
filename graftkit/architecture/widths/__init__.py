"""Widths of a model: which config value makes which axis longer, where the old slices then stand, and a small model to try it on."""
