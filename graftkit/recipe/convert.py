"""The spec of convert: what is not yet a plain checkpoint becomes one."""

from typing import Literal

from graftkit.recipe.spec import Spec


class Convert(Spec):
    """Make a plain checkpoint: weights of pickles as safetensors, and a tokenizer.json of the files of a slow tokenizer.

    It stands first. Pickles are read with --allow-pickle on the command line alone, by torch's unpickler of weights.
    """

    op: Literal["convert"] = "convert"
