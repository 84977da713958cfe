"""How the weights of a base are read that `convert` makes plain ones of: pickles, and what trainers leave of a sharded training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from graftkit.architecture.trained_names import find_weights
from graftkit.checkpoint.distributed.folder import find_folder, read_sharded_weights
from graftkit.checkpoint.distributed.zero import find_step, read_zero_weights
from graftkit.checkpoint.files import is_there
from graftkit.checkpoint.pickled_weights import has_only_pickles, read_pickled_weights
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.checkpoint.weights import INDEX, SINGLE, Weights
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.recipe import Convert

Read = Callable[..., Weights[LazyTensor]]


def reader_of(base: Path, spec: Convert, *, allow_pickle: bool) -> Read | None:
    """What reads the weights in the folder ``base``; None where they are safetensors files, or there are none.

    Raises:
        RecipeError: ``spec`` names a prefix, and nothing there has one.
        InputRejected: they are pickles, and nobody said that they may be read; or config.json is missing beside them.
    """
    read = _reader(base, spec)
    if read is None:
        return None
    if not allow_pickle:
        raise InputRejected(
            f"{printable(base)}: its weights are pickles, which can run code when they are read; convert reads them by"
            " torch's unpickler of weights, which runs none, with --allow-pickle on the command line"
        )
    if not (base / "config.json").is_file():
        raise InputRejected(
            f"{printable(base)}: has no config.json; copy it and the tokenizer's files there from the model that was trained"
        )
    return read


def _reader(base: Path, spec: Convert) -> Read | None:
    choose = functools.partial(find_weights, prefix=spec.prefix)
    found: Read | None = None
    if has_only_pickles(base):
        found = read_pickled_weights
    elif not any(is_there(base / name) for name in (SINGLE, INDEX)):
        if find_folder(base) is not None:
            return functools.partial(read_sharded_weights, choose=choose)
        if find_step(base) is not None:
            return functools.partial(read_zero_weights, choose=choose)
    if spec.prefix is not None:
        raise RecipeError("only what a sharded training left has a prefix; leave it out", field="prefix")
    return found
