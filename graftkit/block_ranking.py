"""`inspect --blocks`: which blocks of a model cost least when they are dropped, by what the model makes of given texts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from graftkit.architecture.accounting import Structure
from graftkit.architecture.layers import layer_list
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import InputRejected, VerificationFailed
from graftkit.operations.base import check_plain_weights
from graftkit.running.block_costs import BlockCosts, cost_of_blocks
from graftkit.running.forward import load, undisturbed
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.predictions import text_probes
from graftkit.running.runnable import cannot_run

#: Characters of texts that are read, at most; and tokens that are run.
MOST_CHARACTERS, MOST_TOKENS = 1 << 20, 16_384

#: Floating point operations of all runs together: a quarter of an hour on two cores. Fewest tokens, however large the model is.
OPERATIONS, FEWEST_TOKENS = 1e14, 256


def rank_blocks(
    checkpoint: Checkpoint,
    structure: Structure,
    texts: Sequence[str],
    progress: Callable[[str, float], None] | None = None,
) -> BlockCosts:
    """Measure what dropping each block of the main stack costs; the whole model has to fit into memory.

    Raises:
        InputRejected: it does not fit or run, is quantized, has no list of blocks or no tokenizer, or the texts are too short.
    """
    check_plain_weights(checkpoint, "inspect --blocks")
    layers = layer_list(structure.skeleton)
    if why := cannot_run(checkpoint):
        raise InputRejected(f"{checkpoint.name}: its blocks cannot be measured: {why}")
    tokenizer = LoadedTokenizer.of(checkpoint.directory)
    with undisturbed():
        try:
            model = load(checkpoint).model
            runs = 2 * model.num_parameters() * (layers.count + 1)
            tokens = min(max(int(OPERATIONS / runs), FEWEST_TOKENS), MOST_TOKENS)
            probes = list(text_probes(model, tokenizer, texts, tokens))
            if not probes:
                raise InputRejected(f"{checkpoint.name}: the texts have no two tokens")
            tell = functools.partial(progress, "run without each block") if progress else lambda _: None
            return cost_of_blocks(model, checkpoint.config, structure.skeleton, layers, probes, tell)
        except VerificationFailed as error:
            raise InputRejected(f"{checkpoint.name}: its blocks cannot be measured: {error}") from error
