"""A recipe as it is written: YAML text to plain values, the place of each, overrides, paths, and how problems are worded.

Needs yaml alone: what the values mean is `graftkit.recipe`'s, which needs pydantic.
"""
