"""Tokenizers of every kind, as folders that a recipe can name as donor.

They are trained on text that the demo model was trained on, the byte-level one on code of Python's own library, so that it has many
tokens which the demo model lacks.
"""

import _pydecimal as decimal_module
import argparse
import functools
import json
import subprocess
import sys
import typing
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from support import tokenizer_sources as sources

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
ROLES = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}


@functools.cache
def corpus(topics=150):
    """The first topics of the demo model's training text."""
    from train_demo_model import texts

    return tuple(texts()[0][:topics])


@functools.cache
def code():
    """Some modules of Python's library as text."""
    return tuple(
        Path(module.__file__).read_text(encoding="utf-8") for module in (argparse, decimal_module, subprocess, typing)
    )


def write_donor(kind, folder, *, tokens=900, topics=150):
    """Write the tokenizer files of a donor of one ``kind`` into ``folder``: sentencepiece, unigram, byte_level or wordpiece."""
    document, roles = {"sentencepiece": _sentencepiece, "unigram": _unigram, "byte_level": _byte_level,
                       "wordpiece": _wordpiece}[kind](tokens, code() if kind == "byte_level" else corpus(topics))  # fmt: skip
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **roles}
    documents = {"tokenizer.json": document, "tokenizer_config.json": config, "special_tokens_map.json": roles}
    return sources.write(documents | {"chat_template.jinja": TEMPLATE}, folder)


def _trained(tokenizer, trainer, texts):
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())


def _sentencepiece(tokens, texts):
    """BPE with a mark for spaces and a token for each byte, as Llama 2 and Gemma have."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [*ROLES.values(), *(f"<0x{byte:02X}>" for byte in range(256))]
    document = _trained(
        tokenizer, trainers.BpeTrainer(vocab_size=tokens, special_tokens=special, show_progress=False), texts
    )
    document["added_tokens"] = document["added_tokens"][: len(ROLES)]
    return document, ROLES


def _unigram(tokens, texts):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=tokens, special_tokens=[*ROLES.values()], unk_token="<unk>", show_progress=False
    )
    document = _trained(tokenizer, trainer, texts)
    pieces = [piece for piece, _ in document["model"]["vocab"]]
    document["model"]["vocab"] = sources.steady_scores(pieces, [*ROLES.values()], [t.replace("\n", " ") for t in texts])
    return document, ROLES


def _byte_level(tokens, texts):
    """With other names for its special tokens, one of them for two roles, and others that are plain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens, special_tokens=["<|end|>", "<|tool|>"], initial_alphabet=alphabet, show_progress=False
    )
    return _trained(tokenizer, trainer, texts), {"bos_token": "<|end|>", "eos_token": "<|end|>"}


def _wordpiece(tokens, texts):
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    pieces = sources.wordpiece_vocabulary(sources.words_of(tokenizer, texts), [*special.values()], tokens)
    tokenizer.model = models.WordPiece(pieces, unk_token="[UNK]")
    tokenizer.add_special_tokens([*special.values()])
    return json.loads(tokenizer.to_str()), special
