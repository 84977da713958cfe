"""Running a skeleton on the meta device: from token ids alone, with kernels that need no values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

#: Tokens of the one sequence.
TOKENS = 4


def prepare_for_meta(model: PreTrainedModel) -> None:
    """Choose evaluation and the kernels that need no values."""
    model.eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("batched_mm")


def inputs_on_meta(model: PreTrainedModel) -> dict[str, Tensor]:
    """Token ids without values, for the decoder too where there is one. *Shape:* ``(1, TOKENS)``."""
    import torch

    ids = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    return {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})


def asks_for_value(func: Any) -> bool:
    """Whether an operation asks for a value, mostly about a mask."""
    return bool(func.overloadpacket.__name__ == "_local_scalar_dense")


def answer_of(tensor: Tensor) -> float | bool:
    """What such a question is answered with, since there are no values: zero."""
    return 0.0 if tensor.dtype.is_floating_point else False
