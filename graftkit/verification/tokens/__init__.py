"""Checks of tokenizers and of the rows that were made for their tokens."""
