"""Widen feed-forward layers, experts, key-value heads and the residual stream of every class that transformers can build small, and check each result.

    python scripts/sweep_widen.py --jobs 2 --out docs/sweep_widen.md
    python scripts/sweep_widen.py --match '^Llama'

Each class is built with random weights, and the field of its config that names the width is made larger. Each result is reloaded with
plain transformers, and its outputs must be the source's. Exits 1 when a result is wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sweep_table import Verdict, page, run_sweep
from sweep_vocab_check import LIVE, ROWS, one_line
from sweep_widen_check import Wrong, check_wider

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

KINDS = ("causal_lm", "masked_lm", "seq2seq_lm")

#: The fields that may name a width, by the name of its column: those of the config that are numbers are tried in turn.
FIELDS = {
    "feed-forward": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "inner_dim"),
    "experts": ("moe_intermediate_size", "expert_intermediate_size", "shared_expert_intermediate_size", "moe_ffn_hidden_size"),
    "key-value heads": ("num_key_value_heads", "num_kv_heads"),
    "hidden size": ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim"),
}  # fmt: skip

#: Times the value of those columns that do not grow by a half; four, so that norms are multiplied by a half and nothing is rounded.
TIMES = {"key-value heads": 2, "hidden size": 4}

WORDS = ("works", "works, bitwise", "works, outputs not run", "no such field", "refused", "wrong")


def main() -> int:
    """Sweep, print, write the table."""
    return run_sweep(FIELDS, KINDS, judge, markdown, __doc__ or "")


def judge(name: str, place: Path) -> Verdict:
    """Try every width on a small checkpoint of one class."""
    from support.tiny import build

    source = place / "source"
    try:
        build(name, source, vocab_size=ROWS, tokenizer_size=LIVE)
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return Verdict(name, not_built=one_line(error))
    found, reasons = {}, {}
    for column in FIELDS:
        found[column], reason = try_width(source, place / column, column)
        if reason:
            reasons[column] = reason
    return Verdict(name, found, reasons)


def try_width(source: Path, output: Path, column: str) -> tuple[str, str]:
    """``(verdict, reason)`` of the first field of one column that the class has and that makes a tensor larger."""
    import json

    import graftkit
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    said = ("no such field", "")
    for field in FIELDS[column]:
        value = value_of(config, field)
        if value is None:
            continue
        sizes = {field: TIMES[column] * value if column in TIMES else value + value // 2}
        recipe: dict[str, Any] = {
            "version": 1, "base_model": str(source), "output": str(output), "verify": {"outputs": False},
            "operations": [{"op": "widen", "sizes": sizes}],
        }  # fmt: skip
        try:
            graftkit.apply(recipe)
            return check_wider(source, output), ""
        except RecipeError as error:
            if "makes no tensor larger" not in str(error):
                return "refused", one_line(error)
            said = "no such field", f"{field} makes no tensor larger"
        except InputRejected as error:
            return "refused", one_line(error).replace(str(source), "source")
        except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
            kind = "" if isinstance(error, Wrong | VerificationFailed) else f"{type(error).__name__}: "
            return "wrong", kind + one_line(error)
    return said


def value_of(config: dict[str, Any], field: str) -> int | None:
    """What a config has for a field, by transformers' name for it; at most four hidden sizes where it is null, None where it has none."""
    from graftkit.architecture.skeleton import build_config
    from graftkit.architecture.widths.fields import find_field

    try:
        found = find_field(config, field)
    except ValueError:
        return None
    return found.value or 4 * int(getattr(build_config(config).get_text_config(), "hidden_size", 0)) or None


def markdown(verdicts: list[Verdict], command: str) -> str:
    """The table as a page."""
    intro = (
        "Each class is built small with random weights, and `widen` makes one field of its config larger: *feed-forward* and *experts* by a half,",
        f"*key-value heads* twice as many, *hidden size* four times. The fields are, the first that makes a tensor larger: {', '.join(f'`{n}`' for ns in FIELDS.values() for n in ns)}.",
        "Each result is written without graftkit's own comparison of outputs, reloaded with plain transformers, and compared with its source by code that",
        "is not graftkit's: its logits (or first output) equal, or within 2e-6 of the largest of them, and tensors that did not grow as they were. In float32, one thread.",
    )  # fmt: skip
    return page("Widths, class by class", intro, tuple(FIELDS), WORDS, verdicts, command)


if __name__ == "__main__":
    raise SystemExit(main())
