"""Extend the vocabulary of every class that transformers can build small, and check each result without graftkit's help.

    python scripts/sweep_vocab.py --jobs 2 --out docs/sweep_vocab.md
    python scripts/sweep_vocab.py --kind vision_language --match '^Llava'

Each class is built with random weights, twice given three special tokens and a plain one (once where the table must grow,
once with rows to spare and a padded size), reloaded with plain transformers, and compared with its source. Exits 1 when
a result is wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

KINDS = ("causal_lm", "masked_lm", "seq2seq_lm", "vision_language")
VERDICTS = ("works", "works, outputs not run", "refused", "wrong", "not built")
ROWS, LIVE = 331, 323
SPECIAL, PLAIN = ("<|tool_call|>", "<|tool_result|>", "<|think|>"), "ketoglutarate"

#: How far logits may move where a kernel picks another path for another width, as a share of the largest.
ROUNDING = 2e-6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one class, or of one of its variants.

    ``moved`` is the largest change of an old output as the sweep itself measures it, 0.0 for bitwise and None where it could
    not run the class; ``promise`` is what graftkit's report measured, with the inputs that were made beside token ids.
    """

    class_name: str
    verdict: str
    reason: str = ""
    moved: float | None = None
    promise: str = ""
    apart: str = ""
    seconds: float = 0.0


class Wrong(Exception):
    """A check failed; the message says which."""


def main() -> int:
    """Sweep, print, write the table."""
    arguments = _arguments()
    from support.tiny import classes

    kinds = [arguments.kind] if arguments.kind else list(KINDS)
    chosen = {kind: [n for n in classes(kind) if re.search(arguments.match, n)] for kind in kinds}
    names = list(dict.fromkeys(name for listed in chosen.values() for name in listed))
    started = time.monotonic()
    verdicts = {}
    for verdict in sweep(names, arguments.jobs, arguments.limit, build_only=arguments.build_only):
        verdicts[verdict.class_name] = verdict
        if verdict.verdict != "works" or arguments.verbose:
            print(f"{verdict.class_name:46} {verdict.verdict}: {verdict.reason} ({verdict.seconds:.1f} s)", flush=True)
    counts = Counter(verdict.verdict for verdict in verdicts.values())
    print(f"{len(names)} classes in {time.monotonic() - started:.0f} s:", dict(counts))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(markdown(chosen, verdicts, _command()), encoding="utf-8")
    return 1 if counts["wrong"] else 0


def _command() -> str:
    return shlex.join(["python", "scripts/sweep_vocab.py", *sys.argv[1:]])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, help="only this kind of classes")
    parser.add_argument("--match", default="", help="only classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=90, help="seconds that one class may take (default 90)")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    parser.add_argument("--build-only", action="store_true", help="only build the checkpoints")
    parser.add_argument("--verbose", action="store_true", help="print the classes that work, too")
    return parser.parse_args()


def sweep(names: list[str], jobs: int, limit: float, *, build_only: bool) -> Any:
    """Yield the verdict on each class. A worker that crashes or takes too long is replaced and costs only its class."""
    waiting, context = list(reversed(names)), multiprocessing.get_context("spawn")
    busy: dict[Connection, tuple[Any, str, float]] = {}
    idle: list[tuple[Connection, Any]] = []
    while waiting or busy:
        while waiting and len(busy) < jobs:
            pipe, process = idle.pop() if idle else _start(context, build_only)
            pipe.send(waiting[-1])
            busy[pipe] = (process, waiting.pop(), time.monotonic())
        ready = wait(list(busy), timeout=1)
        for pipe in list(busy):
            process, name, since = busy[pipe]
            late = time.monotonic() - since > limit
            if pipe not in ready and not late:
                continue
            del busy[pipe]
            try:
                if pipe not in ready:
                    raise EOFError
                yield pipe.recv()
                idle.append((pipe, process))
            except EOFError:
                process.kill()
                process.join()
                why = f"took more than {limit:.0f} s" if late else f"the process died with {process.exitcode}"
                yield Verdict(name, "wrong", why, seconds=time.monotonic() - since)
    for pipe, process in idle:
        pipe.send(None)
        process.join()


def _start(context: Any, build_only: bool) -> tuple[Connection, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, build_only), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _work(pipe: Connection, build_only: bool) -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    while (name := pipe.recv()) is not None:
        gc.freeze()  # the modules of many architectures are many objects, and each verification collects garbage
        place, started = Path(tempfile.mkdtemp(prefix="sweep-")), time.monotonic()
        try:
            verdict = _judge(name, place, build_only=build_only)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        pipe.send(replace(verdict, seconds=time.monotonic() - started))


def _judge(name: str, place: Path, *, build_only: bool) -> Verdict:
    """The verdict over three variants: the table grows, spare rows are taken, and every sub-config has a size of its own."""
    from support.families import write_tokenizer
    from support.tiny import build

    source = place / "source"
    try:
        built = build(name, source, vocab_size=ROWS, tokenizer_size=LIVE)
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return Verdict(name, "not built", _line(error))
    if build_only:
        return Verdict(name, "works", built.forward_error or "")
    found = []
    for tokens, multiple in ((ROWS, None), (LIVE, 8)):
        write_tokenizer(source, tokens)
        found.append(extend(name, source, place / f"out-{tokens}", tokens, multiple))
        if found[-1].verdict in ("refused", "wrong"):
            return found[-1]
    apart = _apart(name, source, place / "apart")
    if apart and apart.verdict == "wrong":
        return apart
    worst = next((item for item in found if item.verdict != "works"), found[0])
    figures = [item.moved for item in found if item.moved is not None]
    promise = max((item.promise for item in found), key=len)
    return replace(worst, moved=max(figures, default=None), promise=promise, apart=apart.verdict if apart else "")


def _apart(name: str, together: Path, place: Path) -> Verdict | None:
    """The same with a vocabulary size of its own for each sub-config; None where that changes nothing or cannot be built."""
    from support.tiny import build

    source = place / "source"
    try:
        build(name, source, vocab_size=ROWS, tokenizer_size=ROWS, distinct=True)
    except Exception:  # noqa: BLE001 - many classes want two sub-configs to agree
        return None
    if (source / "config.json").read_text() == (together / "config.json").read_text():
        return None
    found = extend(name, source, place / "out", ROWS, None)
    return replace(found, reason=f"with a size for each sub-config: {found.reason}")


def extend(name: str, source: Path, output: Path, tokens: int, multiple: int | None) -> Verdict:
    """Run graftkit on one checkpoint, and judge what it wrote."""
    import graftkit
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    operation: dict[str, Any] = {"op": "extend_vocab", "special_tokens": list(SPECIAL), "tokens": [PLAIN]}
    if multiple:
        operation["pad_to_multiple_of"] = multiple
    recipe: dict[str, Any] = {
        "version": 1, "base_model": str(source), "operations": [operation], "output": str(output),
    }  # fmt: skip
    apply: Any = graftkit.apply
    verdict, reason = "works", ""
    try:
        try:
            report = apply(recipe)
        except VerificationFailed as error:
            if "needs other inputs" not in str(error):
                raise
            verdict, reason = "works, outputs not run", _line(error).split(";")[0]
            report = apply({**recipe, "verify": {"outputs": False}})
        return Verdict(name, verdict, reason, check(source, output, tokens, multiple), _measured(report.outputs))
    except (InputRejected, RecipeError) as error:
        return Verdict(name, "refused", _line(error).replace(str(source), "source"))
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        kind = "" if isinstance(error, Wrong | VerificationFailed) else f"{type(error).__name__}: "
        return Verdict(name, "wrong", kind + _line(error))


def _measured(outputs: Any) -> str:
    """What graftkit's own report says of the old outputs."""
    if outputs is None:
        return "not run"
    moved = [item for item in outputs.comparisons if not item.bitwise]
    share = f"{len(moved)} of {len(outputs.comparisons)} outputs"
    text = f"{share} within {max(item.largest for item in moved):.1e}, the others bitwise" if moved else "bitwise"
    return text + (f"; made: {', '.join(outputs.inputs)}" if outputs.inputs else "")


def check(source: Path, output: Path, tokens: int, multiple: int | None) -> float | None:
    """Reload both with plain transformers and compare. Returns how far an old logit moved, None when nothing could be run.

    Raises:
        Wrong: the result does not load as its source does, or differs where it must not, or its new rows are empty.
    """
    import torch
    import transformers

    (old, old_info), (new, new_info) = _load(source), _load(output)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if set(map(str, new_info[kind])) - set(map(str, old_info[kind])):
            raise Wrong(f"{kind}: {sorted(map(str, new_info[kind]))[:3]}")
    size = max(ROWS, tokens + 4)
    size = -(-size // (multiple or 1)) * (multiple or 1)
    head = new.get_output_embeddings()
    for table in (_input_table(new), *([] if head is None else [head.weight])):
        if table.shape[0] != size or new.config.get_text_config().vocab_size != size:
            raise Wrong(f"{table.shape[0]} rows, vocab_size {new.config.get_text_config().vocab_size}, wanted {size}")
        made = table[tokens : tokens + 4]
        if not (made.isfinite().all() and made.abs().sum(-1).all()):
            raise Wrong("a new row is zero or not finite")
    if not torch.equal(_input_table(new)[:tokens], _input_table(old)[:tokens]):
        raise Wrong("old input rows changed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    ids = tokenizer(f"a{''.join(SPECIAL)} {PLAIN}", add_special_tokens=False)["input_ids"]
    if not set(range(tokens, tokens + 4)) <= set(ids):
        raise Wrong(f"the tokenizer gives {ids}")
    return _compare(old, new, tokens)


def _load(directory: Path) -> tuple[Any, Any]:
    import transformers

    name = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()  # mapped tensors are aligned as their file is, and kernels look at that
    return model.eval(), info


def _input_table(model: Any) -> Any:
    try:
        return model.get_input_embeddings().weight
    except NotImplementedError:
        return model.get_decoder().embed_tokens.weight


def _compare(old: Any, new: Any, tokens: int) -> float | None:
    import torch
    from support.tiny import forward

    ids = torch.randint(4, LIVE - 16, (2, 24), generator=torch.Generator().manual_seed(7))
    torch.manual_seed(0)  # some classes hash at random
    try:
        before = forward(old, ids)
    except Exception:  # noqa: BLE001 - the class wants inputs that are not made up here
        return None
    torch.manual_seed(0)
    after = forward(new, ids)
    name = "logits" if getattr(before, "logits", None) is not None else next(iter(before))
    before, after = before[name], after[name]
    if (name == "logits" and after.shape[-1] != before.shape[-1]) or before.shape[-1] == ROWS:
        before, after = before[..., :tokens], after[..., :tokens]
    if not before.isfinite().all():
        raise Wrong("the source's own outputs are not finite")
    moved = float((after - before).abs().max())
    if moved > ROUNDING * float(before.abs().max()):
        raise Wrong(f"an old logit moved by {moved:.3g} of {float(before.abs().max()):.3g}")
    ids[:, 1:5] = torch.arange(tokens, tokens + 4)
    if forward(new, ids)[name].isnan().any():
        raise Wrong("new ids give NaN")
    return moved


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def markdown(chosen: dict[str, list[str]], verdicts: dict[str, Verdict], command: str) -> str:
    """The table as a page: how to repeat it, counts by kind, what does not simply work, then every class."""
    import torch
    import transformers

    apart = Counter(item.apart for item in verdicts.values() if item.apart)
    lines = [
        "# extend_vocab over every class", "",
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__}; to repeat it: `{command}`.", "",
        "Each class is built small with random weights and given three special tokens and a plain one: once where the table must",
        "grow, once with spare rows and `pad_to_multiple_of: 8`, and, where it can be built so, once with a vocabulary size of its own",
        f"for each sub-config ({sum(apart.values())} classes: {_counted(apart)}). graftkit verifies each result; then it is reloaded with plain",
        "transformers and compared with its source by code that is not graftkit's. The last column is the largest change of an old",
        "output found there; *bitwise* and *within* before it are what graftkit's own report measured over its probes, with the inputs",
        "that it made beside token ids.", "",
        "| kind | classes | " + " | ".join(VERDICTS) + " |", "|---|---:|" + "---:|" * len(VERDICTS),
    ]  # fmt: skip
    for kind, names in [*chosen.items(), ("all, each once", list(verdicts))]:
        counts = Counter(verdicts[name].verdict for name in names)
        figures = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
        lines.append(f"| {kind} | {len(names)} | {figures} |")
    for verdict in reversed(VERDICTS[1:]):
        found = [item for item in verdicts.values() if item.verdict == verdict]
        rows = [f"| {item.class_name} | {_cell(item.reason)} |" for item in found]
        lines += ["", f"## {verdict}: {len(found)}", "", *(["| class | reason |", "|---|---|", *rows] if rows else ["none"])]
    for kind, names in chosen.items():
        lines += ["", f"## {kind}", "", "| class | verdict | measured by graftkit | measured again |", "|---|---|---|---|"]
        lines += [_row(verdicts[name]) for name in names]
    return "\n".join(lines) + "\n"


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common()) or "none"


def _row(item: Verdict) -> str:
    again = "" if item.moved is None else "bitwise" if item.moved == 0 else f"{item.moved:.1e}"
    return f"| {item.class_name} | {item.verdict} | {_cell(item.promise)} | {again} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    raise SystemExit(main())
