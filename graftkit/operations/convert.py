"""convert: what is not yet a plain checkpoint becomes one: weights of pickles, the files of a slow tokenizer, quantized weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.distributed.parts import PART
from graftkit.checkpoint.documents import TOKENIZER
from graftkit.checkpoint.quantization import quantization_config
from graftkit.checkpoint.weights import SINGLE
from graftkit.checkpoint.write import METADATA
from graftkit.errors import InputRejected, RecipeError, few, plural
from graftkit.operations.base import Context, Outcome
from graftkit.operations.weights.dequantize import PLAIN_WEIGHTS, dequantize
from graftkit.recipe import Convert
from graftkit.running.texts import load_tokenizer
from graftkit.verification.promises import EVERY_INPUT, Promise, PromiseClass, Scope
from graftkit.verification.weights.converted import ConvertCheck
from graftkit.verification.weights.dequantized import DequantizedCheck

#: What the files of a slow tokenizer are called; any one of them is enough for transformers to tell which it is.
SLOW = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "source.spm")


def convert(spec: Convert, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Return the checkpoint with safetensors files and a tokenizer.json where it has pickles and the files of a slow tokenizer.

    Raises:
        InputRejected: transformers cannot make a tokenizer.json of the tokenizer's files, or weights are to be dequantized and are
            not of a format that is.
        RecipeError: everything is plain already, or what is to be dequantized is not quantized.
    """
    del context
    result, notes = checkpoint, list[str]()
    pickles = tuple(shard for shard in checkpoint.shards if not shard.endswith(".safetensors"))
    if pickles:
        files = {shard: _plain_name(shard, len(pickles)) for shard in pickles}
        again = _stored_twice(checkpoint)
        result = checkpoint.with_tensors(dict.fromkeys(again)) if again else checkpoint
        result = result.with_files({old: new for old, new in files.items() if old in result.shards}, METADATA)
        what = "the pieces of a sharded training" if pickles[0].endswith(PART) else few(pickles)
        notes.append(f"{what}: read by torch's unpickler of weights, which builds tensors and runs nothing")
        if again:
            notes.append(
                f"{plural(len(again), 'tensor')} the class ties to another, whose memory it shares, stored once: {few(again)}"
            )
    slow = tuple(name for name in SLOW if name in checkpoint.carried)
    made = slow and TOKENIZER not in checkpoint.documents
    if made:
        result = result.with_documents({TOKENIZER: _tokenizer(checkpoint)})
        notes.append(f"{TOKENIZER} made of {few(slow)} by transformers")
    if not notes and not spec.dequantize:
        raise RecipeError(
            "everything is plain already: safetensors weights, and a tokenizer.json or no tokenizer"
            + (
                "; quantized weights are unpacked with dequantize: true"
                if quantization_config(checkpoint.config)
                else ""
            )
        )
    checks = (ConvertCheck(checkpoint, result, pickles, bool(made), spec.prefix),) if notes else ()
    if not spec.dequantize:
        promise = Promise(PromiseClass.BITWISE, "hidden states and logits over every id", EVERY_INPUT)
        return Outcome(result, promise, tuple(notes), checks=checks)
    if pickles:
        raise RecipeError("its weights are pickles; convert them first, in a run of their own", field="dequantize")
    plain = dequantize(result, "BF16")
    return Outcome(
        plain.checkpoint,
        Promise(PromiseClass.ROUNDED, PLAIN_WEIGHTS, EVERY_INPUT),
        (*notes, plain.note),
        scope=Scope.MEASURE,
        checks=(*checks, DequantizedCheck(result, plain.checkpoint)),
        unpacked=plain.weights,
    )


def _plain_name(shard: str, count: int) -> str:
    """What a weight file is called once it is plain: that of its pickle, or of one of ``count`` parts of a sharded training."""
    if shard.endswith(".bin"):
        return shard.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"
    return SINGLE if count == 1 else f"model-{shard.removesuffix(PART)}.safetensors"


def _stored_twice(checkpoint: Checkpoint) -> list[str]:
    """Names of tensors that the class ties to another, and that are the same bytes of the same files as that."""
    skeleton = build_skeleton(checkpoint.config)
    names = skeleton.memory_names(checkpoint.tensors)
    pairs: Iterator[Any] = (
        (names.stored_as(target), names.stored_as(origin)) for target, origin in skeleton.tied.items()
    )
    return [
        target
        for target, origin in pairs
        if target and origin and checkpoint.tensors[target] == checkpoint.tensors[origin]
    ]


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """What tokenizer.json holds, as transformers' own classes make it.

    Raises:
        InputRejected: they cannot, such as for want of a library that reads the files.
    """
    loaded = load_tokenizer(checkpoint.directory)
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise InputRejected(
            f"{checkpoint.name}: transformers has no conversion of {type(loaded).__name__} to tokenizer.json"
        )
    return json.loads(backend.to_str())
