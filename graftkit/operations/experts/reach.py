"""A small model whose few tokens see how far each token looks: numbers of its config that limit this are made small too.

A window of 4096 tokens limits nothing on a text of twelve, so that a class without one would pass for the same. There is no table of
such numbers: one that changes no shape, is larger than the text is long, and changes what comes out when it is made smaller, is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.architecture.skeleton import Path, Skeleton, build_config, build_skeleton, integer_paths, with_values
from graftkit.operations.experts.trial import Trial
from graftkit.operations.widths.trial import TOKENS

#: What such a number becomes.
REACH = TOKENS // 3


def with_short_reach(config: Mapping[str, Any], dense: Skeleton) -> tuple[Mapping[str, Any], Skeleton, Trial]:
    """The config with each such number made small, its skeleton, and the experiment on it.

    Raises:
        Exception: whatever the class raises that cannot be built or run as it is.
    """
    trial = Trial(config, dense)
    for path in _large_numbers(config):
        changed = with_values(config, [path], REACH)
        try:
            skeleton = build_skeleton(changed, dense.architecture)
            other = Trial(changed, skeleton) if skeleton.shapes == dense.shapes else trial
        except Exception:  # noqa: BLE001, S112 - a class may refuse a value in any way, and then keeps the one that it has
            continue
        if other.differs_from(trial):
            config, dense, trial = changed, skeleton, other
    return config, dense, trial


def _large_numbers(config: Mapping[str, Any]) -> Iterator[Path]:
    """Where the config has numbers that are larger than the text is long; those of tokens are names and not sizes."""
    found = dict(integer_paths(build_config(config).to_dict())) | dict(integer_paths(dict(config)))
    yield from (path for path, value in found.items() if value >= TOKENS and "token" not in path[-1])
