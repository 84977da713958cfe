"""Small checkpoints with a tokenizer of each kind, and which of its tokens are renamed in tests."""

import json

from support.families import build
from support.tokenizer_sources import bpe, bpe_legacy, llama, unigram, wordlevel, wordpiece, write

#: Of byte-level BPE in both layouts, WordPiece, Unigram and SentencePiece-BPE: a further token and one that ends a text.
NAMES = {
    bpe: {"<|old|>": "<|tool_call|>", "</s>": "<|im_end|>"},
    bpe_legacy: {"<|old|>": "<|tool_call|>", "</s>": "<|im_end|>"},
    wordpiece: {"[MASK]": "[TOOL]", "[SEP]": "[END]"},
    unigram: {"<extra_id_0>": "<|tool_call|>", "</s>": "<|im_end|>"},
    llama: {"<s>": "<|begin|>", "</s>": "<|im_end|>"},
}

#: And of whole words, whose only files are tokenizer.json and its config.
WITH_WORDS = {**NAMES, wordlevel: {"<unk>": "<|unknown|>", "<eos>": "<|im_end|>"}}


def checkpoint(make, folder):
    """A Llama of 512 rows in ``folder`` with the tokenizer that ``make`` gives, whose ids its configs name."""
    build("llama", folder, rows=512)
    documents = make()
    for name in ("config.json", "generation_config.json"):
        ids = {key: value for key, value in documents.pop(name, {}).items() if key.endswith("_token_id")}
        known = json.loads((folder / name).read_text())
        kept = {key: value for key, value in known.items() if not key.endswith("_token_id")}
        (folder / name).write_text(json.dumps({**kept, **ids}))
    (folder / "tokenizer_config.json").unlink()
    return write(documents, folder)
