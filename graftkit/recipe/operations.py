"""The operations that a recipe can name.

To add one: write its spec in a file beside this one, a :class:`~graftkit.recipe.spec.Spec` whose ``op`` is a literal with
that literal as its default, and put the class into the union: ``ExtendVocab | ReplaceHead``. One that makes an adapter belongs
into ``MAKE_ADAPTERS`` too.
"""

from typing import Annotated

from graftkit.recipe.add_adapter import AddAdapter
from graftkit.recipe.add_lora import AddLora
from graftkit.recipe.choice import OneOf
from graftkit.recipe.combine_adapters import CombineAdapters
from graftkit.recipe.convert import Convert
from graftkit.recipe.edit_tensors import EditTensors
from graftkit.recipe.extend_vocab import ExtendVocab
from graftkit.recipe.extract_lora import ExtractLora
from graftkit.recipe.merge_adapter import MergeAdapter
from graftkit.recipe.reinit import Reinit
from graftkit.recipe.reinit_rows import ReinitRows
from graftkit.recipe.rename_tokens import RenameTokens
from graftkit.recipe.replace_head import ReplaceHead
from graftkit.recipe.resize_adapter import ResizeAdapter
from graftkit.recipe.retarget_adapter import RetargetAdapter

Operation = Annotated[
    ExtendVocab
    | RenameTokens
    | ReinitRows
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
    | RetargetAdapter,
    OneOf("op", "operation"),
]

#: The operations that make an adapter for the base as it is then.
MAKE_ADAPTERS = frozenset(
    {"add_adapter", "add_lora", "combine_adapters", "extract_lora", "resize_adapter", "retarget_adapter"}
)
