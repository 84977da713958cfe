"""The operations: one file each. A registry is a readable dict."""

from __future__ import annotations

from graftkit.operations.add_adapter import add_adapter
from graftkit.operations.add_lora import add_lora
from graftkit.operations.arrange_blocks import arrange_blocks
from graftkit.operations.base import Context, Operation, Outcome
from graftkit.operations.cast import cast
from graftkit.operations.combine_adapters import combine_adapters
from graftkit.operations.convert import convert
from graftkit.operations.drop_blocks import drop_blocks
from graftkit.operations.edit_tensors import edit_tensors
from graftkit.operations.extend_positions import extend_positions
from graftkit.operations.extend_vocab import extend_vocab
from graftkit.operations.extract_lora import extract_lora
from graftkit.operations.extract_submodel import extract_submodel
from graftkit.operations.insert_blocks import insert_blocks
from graftkit.operations.learn_tokens import learn_tokens
from graftkit.operations.merge_adapter import merge_adapter
from graftkit.operations.reinit import reinit
from graftkit.operations.reinit_rows import reinit_rows
from graftkit.operations.rename_tokens import rename_tokens
from graftkit.operations.replace_head import replace_head
from graftkit.operations.resize_adapter import resize_adapter
from graftkit.operations.retarget_adapter import retarget_adapter
from graftkit.operations.set_embeddings import set_embeddings
from graftkit.operations.take_tensors import take_tensors
from graftkit.operations.transplant_tokenizer import transplant_tokenizer
from graftkit.operations.trim_vocab import trim_vocab
from graftkit.operations.upcycle_moe import upcycle_moe
from graftkit.operations.widen import widen

IMPLEMENTATIONS: dict[str, Operation] = {
    "extend_vocab": extend_vocab,
    "learn_tokens": learn_tokens,
    "rename_tokens": rename_tokens,
    "reinit_rows": reinit_rows,
    "trim_vocab": trim_vocab,
    "add_adapter": add_adapter,
    "add_lora": add_lora,
    "cast": cast,
    "combine_adapters": combine_adapters,
    "arrange_blocks": arrange_blocks,
    "drop_blocks": drop_blocks,
    "convert": convert,
    "edit_tensors": edit_tensors,
    "extend_positions": extend_positions,
    "extract_lora": extract_lora,
    "insert_blocks": insert_blocks,
    "extract_submodel": extract_submodel,
    "merge_adapter": merge_adapter,
    "reinit": reinit,
    "replace_head": replace_head,
    "resize_adapter": resize_adapter,
    "retarget_adapter": retarget_adapter,
    "set_embeddings": set_embeddings,
    "take_tensors": take_tensors,
    "transplant_tokenizer": transplant_tokenizer,
    "upcycle_moe": upcycle_moe,
    "widen": widen,
}

#: Operations that compute with weights which a quantizer packs, write some of their own beside them, or give them other names, by
#: which a quantization_config may speak of them; a quantized base is refused.
NEED_PLAIN_WEIGHTS = frozenset(
    {
        "arrange_blocks", "cast", "drop_blocks", "extend_positions", "extract_lora", "extract_submodel", "insert_blocks",
        "merge_adapter", "reinit", "set_embeddings", "take_tensors", "transplant_tokenizer", "trim_vocab", "upcycle_moe",
        "widen",
    }
)  # fmt: skip

__all__ = ["IMPLEMENTATIONS", "NEED_PLAIN_WEIGHTS", "Context", "Operation", "Outcome"]
