"""How large a model is in each direction: its stacks of layers, widths, heads and positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.layers import layer_stacks
from graftkit.architecture.parameters import text_value
from graftkit.architecture.skeleton import Skeleton

#: What configs call the width between the two projections of a block, and the number of positions.
INNER_WIDTH = ("intermediate_size", "decoder_ffn_dim", "ffn_dim", "d_ff", "n_inner")
POSITIONS = ("max_position_embeddings", "n_positions", "max_source_positions")


@dataclass(frozen=True, slots=True)
class Dimensions:
    """``layers`` gives the number of layers by the name of their list; the rest is None where the config has no such number.

    ``positions`` is the most that the config admits, in tokens; ``head_dim`` the width of one attention head.
    """

    layers: Mapping[str, int]
    hidden_size: int | None
    intermediate_size: int | None
    heads: int | None
    key_value_heads: int | None
    head_dim: int | None
    positions: int | None


def dimensions_of(skeleton: Skeleton) -> Dimensions:
    """What the config says (that of the text decoder, where there are several), and the class itself of its layers."""

    def number(*names: str) -> int | None:
        found: Any = text_value(skeleton, *names)
        return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    shared = hidden // heads if hidden and heads and hidden % heads == 0 else None
    return Dimensions(
        layer_stacks(skeleton),
        hidden,
        number(*INNER_WIDTH),
        heads,
        number("num_key_value_heads") if heads else None,
        (number("head_dim", "d_kv") or shared) if heads else None,
        number(*POSITIONS),
    )
