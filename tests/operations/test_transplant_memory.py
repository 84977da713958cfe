"""transplant_tokenizer streams: a table that is three times as wide takes no more memory to write and to look at again."""

import json
import re
import string
from pathlib import Path

import pytest
import transformers
from support.recipes import recipe
from support.tokenizer_sources import bpe, write
from tokenizers import pre_tokenizers

import graftkit

NARROW, WIDE = 4096, 12288
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def tokenizer_of(letters):
    """Byte-level BPE of every word of two and of three of the letters."""
    pairs = [(one, two) for one in letters for two in letters]
    merges = [*pairs, *((one + two, three) for one, two in pairs for three in letters)]
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    documents = {name: value for name, value in bpe().items() if name.startswith("tokenizer")}
    document = documents["tokenizer.json"]
    document["model"] |= {"vocab": {piece: index for index, piece in enumerate(pieces)}, "merges": [*map(list, merges)]}
    document["added_tokens"] = document["added_tokens"][:2]
    del documents["tokenizer_config.json"]["extra_special_tokens"]
    return documents, len(pieces)


def build(folder, letters, width):
    """A Llama that is little else than its two tables."""
    documents, rows = tokenizer_of(letters)
    small = {"intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    config = transformers.LlamaConfig(vocab_size=rows, hidden_size=width, bos_token_id=0, eos_token_id=1, **small)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return write(documents, folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The base in both widths, and a donor that shares a quarter of its pieces."""
    place = tmp_path_factory.mktemp("tables")
    letters = string.ascii_lowercase
    return {
        **{width: build(place / str(width), letters[:12], width) for width in (NARROW, WIDE)},
        "donor": build(place / "donor", letters[4:16], 32),
    }


def most_memory(work):
    """How many bytes the process held at most during ``work``."""
    REFERENCES.write_text("5")
    work()
    return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) << 10


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCES.exists(), reason="the kernel does not tell the most memory that was held")
@pytest.mark.parametrize("init", ["fvt", {"scheme": "omp", "k": 4}], ids=["fvt", "omp"])
def test_memory_does_not_grow_with_the_width_of_the_table(init, checkpoints, tmp_path):
    operation = {"op": "transplant_tokenizer", "donor": str(checkpoints["donor"]), "init": init}

    def transplant(name, width):
        report = graftkit.apply(
            recipe(checkpoints[width], tmp_path / name, operation, verify={"outputs": False}),
        )
        assert report.plan.outcomes[0].figures()["made"] > 1000

    transplant("imports", NARROW)
    narrow, wide = (most_memory(lambda width=width: transplant(str(width), width)) for width in (NARROW, WIDE))
    rows = json.loads((tmp_path / str(WIDE) / "config.json").read_text())["vocab_size"]
    table = 4 * rows * (WIDE - NARROW)  # of float32; a table held whole, beside itself in float64, is three of it
    assert wide - narrow < table
