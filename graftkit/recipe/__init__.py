"""Plain values -> frozen values. Needs pydantic and yaml only.

:func:`load_recipe` reads a file, :func:`parse_recipe` a mapping; :func:`dump_recipe` and :func:`json_schema` write.
"""

from graftkit.recipe.arrange_blocks import ArrangeBlocks
from graftkit.recipe.cast import Cast
from graftkit.recipe.chat_template import ChatTemplateFile
from graftkit.recipe.combine_adapters import CombineAdapters
from graftkit.recipe.convert import Convert
from graftkit.recipe.drop_blocks import DropBlocks
from graftkit.recipe.dump import dump_recipe
from graftkit.recipe.edit_tensors import EditTensors
from graftkit.recipe.extend_positions import ExtendPositions
from graftkit.recipe.extend_vocab import ExtendVocab, TokenSpec
from graftkit.recipe.extract_lora import ExtractLora
from graftkit.recipe.insert_blocks import InsertBlocks
from graftkit.recipe.learn_tokens import LearnTokens
from graftkit.recipe.load import load_recipe, parse_recipe
from graftkit.recipe.merge_adapter import MergeAdapter
from graftkit.recipe.operations import Operation
from graftkit.recipe.recipe import Recipe, VerifyOptions
from graftkit.recipe.reinit import Reinit
from graftkit.recipe.reinit_rows import ReinitRows
from graftkit.recipe.rename_tokens import Keep, RenameTokens
from graftkit.recipe.replace_head import ReplaceHead
from graftkit.recipe.resize_adapter import ResizeAdapter
from graftkit.recipe.retarget_adapter import RetargetAdapter
from graftkit.recipe.schema import json_schema
from graftkit.recipe.schemes import Copy, Describe, Distill, Mean, MeanCov, Normal, Scheme, SubwordMean, Zeros
from graftkit.recipe.set_embeddings import SetEmbeddings
from graftkit.recipe.spec import Spec
from graftkit.recipe.trim_vocab import TrimVocab
from graftkit.recipe.weight_schemes import WeightScheme
from graftkit.recipe.widen import Widen

__all__ = [
    "ArrangeBlocks",
    "Cast",
    "ChatTemplateFile",
    "CombineAdapters",
    "Convert",
    "Copy",
    "Describe",
    "Distill",
    "DropBlocks",
    "EditTensors",
    "ExtendPositions",
    "ExtendVocab",
    "ExtractLora",
    "InsertBlocks",
    "Keep",
    "LearnTokens",
    "Mean",
    "MeanCov",
    "MergeAdapter",
    "Normal",
    "Operation",
    "Recipe",
    "Reinit",
    "ReinitRows",
    "RenameTokens",
    "ReplaceHead",
    "ResizeAdapter",
    "RetargetAdapter",
    "Scheme",
    "SetEmbeddings",
    "Spec",
    "SubwordMean",
    "TokenSpec",
    "TrimVocab",
    "VerifyOptions",
    "WeightScheme",
    "Widen",
    "Zeros",
    "dump_recipe",
    "json_schema",
    "load_recipe",
    "parse_recipe",
]
