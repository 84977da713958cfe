"""The operations that a recipe can name.

To add one: write its spec in a file beside this one, a :class:`~graftkit.recipe.spec.Spec` whose ``op`` is a literal with
that literal as its default, and put the class into the union: ``ExtendVocab | ReplaceHead``. One that makes an adapter belongs
into ``MAKE_ADAPTERS`` too.
"""

from typing import Annotated, get_args

from graftkit.recipe.add_adapter import AddAdapter
from graftkit.recipe.add_lora import AddLora
from graftkit.recipe.arrange_blocks import ArrangeBlocks
from graftkit.recipe.cast import Cast
from graftkit.recipe.choice import OneOf
from graftkit.recipe.combine_adapters import CombineAdapters
from graftkit.recipe.convert import Convert
from graftkit.recipe.drop_blocks import DropBlocks
from graftkit.recipe.edit_tensors import EditTensors
from graftkit.recipe.extend_positions import ExtendPositions
from graftkit.recipe.extend_vocab import ExtendVocab
from graftkit.recipe.extract_lora import ExtractLora
from graftkit.recipe.extract_submodel import ExtractSubmodel
from graftkit.recipe.insert_blocks import InsertBlocks
from graftkit.recipe.learn_tokens import LearnTokens
from graftkit.recipe.merge_adapter import MergeAdapter
from graftkit.recipe.reinit import Reinit
from graftkit.recipe.reinit_rows import ReinitRows
from graftkit.recipe.rename_tokens import RenameTokens
from graftkit.recipe.replace_head import ReplaceHead
from graftkit.recipe.resize_adapter import ResizeAdapter
from graftkit.recipe.retarget_adapter import RetargetAdapter
from graftkit.recipe.set_embeddings import SetEmbeddings
from graftkit.recipe.take_tensors import TakeTensors
from graftkit.recipe.transplant_tokenizer import TransplantTokenizer
from graftkit.recipe.trim_vocab import TrimVocab
from graftkit.recipe.upcycle_moe import UpcycleMoe
from graftkit.recipe.widen import Widen

Operation = Annotated[
    ExtendVocab
    | LearnTokens
    | RenameTokens
    | ReinitRows
    | TrimVocab
    | AddAdapter
    | AddLora
    | CombineAdapters
    | Convert
    | EditTensors
    | ExtractLora
    | MergeAdapter
    | Reinit
    | ReplaceHead
    | ResizeAdapter
    | RetargetAdapter
    | ArrangeBlocks
    | DropBlocks
    | InsertBlocks
    | ExtractSubmodel
    | TakeTensors
    | TransplantTokenizer
    | SetEmbeddings
    | Cast
    | ExtendPositions
    | UpcycleMoe
    | Widen,
    OneOf("op", "operation"),
]

#: The words that ``op`` can be.
OPERATIONS: tuple[str, ...] = tuple(spec.model_fields["op"].default for spec in get_args(get_args(Operation)[0]))

#: The operations that make an adapter for the base as it is then.
MAKE_ADAPTERS = frozenset(
    {"add_adapter", "add_lora", "combine_adapters", "extract_lora", "resize_adapter", "retarget_adapter"}
)
