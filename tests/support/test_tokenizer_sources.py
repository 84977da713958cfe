"""The tokenizers that tests are made of are the same in every process, so that a test that passes once passes again."""

import subprocess
import sys
from pathlib import Path

DIGEST = """
import hashlib, json
from support import donors, tokenizer_sources as sources
made = [make() for make in sources.SOURCES]
made += [maker(300, sources.TEXT * 3) for maker in (donors._sentencepiece, donors._unigram, donors._byte_level, donors._wordpiece)]
print(hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest())
"""


def test_each_process_makes_the_same_ones():
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST], cwd=Path(__file__).parents[1], env={"PYTHONHASHSEED": str(seed)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert len(found) == 1
