"""Small tokenizers of every kind, built in code, as the files that a checkpoint of that kind has."""

import itertools
import json
import math
from collections import Counter, defaultdict

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "The cat sat on the mat; a category of cats, concatenated. Der Müller prüft jeden Morgen die Größe. 昨天下雨。"
    " def mean(xs): return sum(xs) / len(xs)  # 3.14  the tool calls a tool, the fox jumps over the lazy dog",
    "a preprint on the archive says that the cat is a category: cat, cats, category, tool, tools, toolbox",
) * 3
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def _entry(index, content, **flags):
    return {"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True, **flags}  # fmt: skip


def _document(tokenizer, *added):
    document = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    document["added_tokens"] += [_entry(size + place, content) for place, content in enumerate(added)]
    return document


def _byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def bpe():
    """As transformers 5 saves: one list, roles as strings, the template in its own file."""
    return {
        "tokenizer.json": _document(_byte_level(), "<|old|>"),
        "tokenizer_config.json": {
            "backend": "tokenizers", "bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": ["<|old|>"],
            "tokenizer_class": "TokenizersBackend", "model_max_length": 64,
        },
        "chat_template.jinja": TEMPLATE,
        "config.json": {"model_type": "llama", "bos_token_id": 0, "eos_token_id": 1, "vocab_size": 512},
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": [1]},
    }  # fmt: skip


def bpe_legacy():
    """As transformers 4 saved: every token three times, roles as objects, the template in tokenizer_config.json."""
    document = _document(_byte_level(), "<|old|>")
    role = {"content": "</s>", **FLAGS}
    return {
        "tokenizer.json": document,
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in document["added_tokens"]
            },
            "additional_special_tokens": ["<|old|>"], "bos_token": "<s>", "chat_template": TEMPLATE,
            "eos_token": {"__type": "AddedToken", **role}, "tokenizer_class": "GPT2Tokenizer", "unk_token": "</s>",
        },
        "special_tokens_map.json": {
            "additional_special_tokens": ["<|old|>"], "bos_token": {**role, "content": "<s>"}, "eos_token": role,
        },
        "added_tokens.json": {"<|old|>": document["added_tokens"][-1]["id"]},
        "config.json": {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 1, "vocab_size": 512},
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1},
    }  # fmt: skip


def wordpiece_vocabulary(words, special, size):
    """Pieces by frequency, as the library's trainer finds them, with ``##`` where they continue a word; ids by piece.

    The trainer goes through words in another order in each process, by which it numbers what continues one, and so breaks ties.
    """
    split = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in words}
    letters = [*sorted({*"".join(words)}), *sorted({piece for pieces in split.values() for piece in pieces[1:]})]
    ids = {piece: place for place, piece in enumerate([*special, *letters])}
    pairs, where = Counter(), defaultdict(set)

    def count(word, sign):
        for pair in itertools.pairwise(split[word]):
            pairs[pair] += sign * words[word]
            where[pair].add(word)

    for word in words:
        count(word, 1)
    while len(ids) < size and pairs:
        pair = max(pairs, key=lambda one: (pairs[one], -ids[one[0]], -ids[one[1]]))
        joined = pair[0] + pair[1][2:]
        ids.setdefault(joined, len(ids))
        for word in where.pop(pair):
            count(word, -1)
            split[word] = _joined(split[word], pair, joined)
            count(word, 1)
        pairs = Counter({one: times for one, times in pairs.items() if times > 0})
    return ids


def _joined(pieces, pair, joined):
    made = []
    for piece in pieces:
        if made and (made[-1], piece) == pair:
            made[-1] = joined
        else:
            made.append(piece)
    return made


def words_of(tokenizer, texts):
    """How often each word stands in the texts, as normalizer and pre-tokenizer leave it."""
    normal = (tokenizer.normalizer.normalize_str(text) for text in texts)
    return Counter(word for text in normal for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))


def steady_scores(pieces, special, texts):
    """The ``pieces`` of a Unigram model behind its ``special`` ones, each with a score by how often it stands in the texts.

    The library's trainer finds the same pieces in each process, and scores that differ in the fourth digit.
    """
    text = "".join("▁" + text.replace(" ", "▁") for text in texts)
    counts = {piece: max(text.count(piece), 1) for piece in sorted({*pieces} - {*special})}
    ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
    total = sum(counts.values())
    return [[name, 0.0] for name in special] + [[piece, math.log(counts[piece] / total)] for piece in ordered]


def wordpiece():
    """BERT: lower-cased, rebuilt by its class from the vocabulary."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.model = models.WordPiece(wordpiece_vocabulary(words_of(tokenizer, TEXT), special, 300), unk_token="[UNK]")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {f"{content[1:-1].lower()}_token": content for content in special}
    return {
        "tokenizer.json": _document(tokenizer),
        "tokenizer_config.json": {**roles, "do_lower_case": True, "tokenizer_class": "BertTokenizer"},
        "special_tokens_map.json": roles,
        "config.json": {"model_type": "bert", "pad_token_id": 0, "vocab_size": 512},
    }


def unigram():
    """T5: Unigram pieces with Metaspace, the vocabulary a list of pairs."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.model = models.Unigram(list(map(tuple, steady_scores(tokenizer.get_vocab(), special, TEXT))), unk_id=2)
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return {
        "tokenizer.json": _document(tokenizer, "<extra_id_0>"),
        "tokenizer_config.json": {
            "additional_special_tokens": ["<extra_id_0>"], "eos_token": "</s>", "extra_ids": 1, "pad_token": "<pad>",
            "tokenizer_class": "T5Tokenizer", "unk_token": "<unk>",
        },
        "config.json": {"model_type": "t5", "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
        "generation_config.json": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    }  # fmt: skip


def llama():
    """Llama 2: BPE with byte fallback, a normalizer that puts a mark before every text, rebuilt by its class."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    document = _document(tokenizer)
    document["added_tokens"] = document["added_tokens"][:3]
    return {
        "tokenizer.json": document,
        "tokenizer_config.json": {
            "bos_token": "<s>", "eos_token": "</s>", "legacy": False, "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        "config.json": {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 512},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
    }  # fmt: skip


def wordlevel():
    """Whole words, without any list of special tokens."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        TEXT, trainers.WordLevelTrainer(vocab_size=100, special_tokens=["<unk>", "<eos>"], show_progress=False)
    )
    return {
        "tokenizer.json": _document(tokenizer),
        "tokenizer_config.json": {
            "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"
        },
    }  # fmt: skip


SOURCES = (bpe, bpe_legacy, wordpiece, unigram, llama, wordlevel)


def write(documents, folder):
    """Write documents as a checkpoint's folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in documents.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
