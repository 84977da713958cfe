"""Checks of weights in another dtype or form, edited or untied."""
