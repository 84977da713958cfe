"""Put a new head onto every class of transformers' mappings that can be built small, and check each without graftkit's help.

    python scripts/sweep_heads.py --jobs 2 --done sweep.jsonl --out docs/sweep_heads.md   # goes on where it was stopped
    python scripts/sweep_heads.py --task token_classification --match '^Llama'

For each model type with a class for the task, a small random checkpoint of its base model (or, where that cannot be built,
of the task's own class) gets three labels, is reloaded twice with plain transformers, and its backbone compared with the
source's. A reward head is that of sequence classification with one label. Exits 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TASKS = (
    "sequence_classification", "token_classification", "question_answering", "multiple_choice", "image_classification",
    "audio_classification", "masked_lm", "causal_lm",
)  # fmt: skip
VERDICTS = ("works", "refused", "wrong", "not built")

#: Seconds of CPU time that one class may take.
LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one class; ``reason`` also says what graftkit's own check could not run."""

    task: str
    model_type: str
    class_name: str
    verdict: str
    reason: str = ""


class Wrong(Exception):
    """A check failed; the message says which."""


def jobs(task: str, match: str) -> list[tuple[str, str, str]]:
    """``(task, model type, class)`` of each class that transformers lists for a task."""
    from transformers.models.auto import modeling_auto

    from graftkit.architecture.head import MAPPINGS

    found = {}
    for model_type, entry in getattr(modeling_auto, MAPPINGS[task]).items():
        name = entry if isinstance(entry, str) else entry[0]
        if re.search(match, name):
            found.setdefault(name, (task, model_type, name))
    return list(found.values())


def judge(job: tuple[str, str, str], limit: float = LIMIT) -> Verdict:
    """Build, apply and check one class."""
    import torch

    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="sweep-"))
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, limit, 1)  # again and again: some library may have caught the first
    try:
        return _judge(job, place)
    except TimeoutError:
        return Verdict(*job, "wrong", f"took more than {limit:g} s")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(place, ignore_errors=True)


def _late(*_: object) -> None:
    raise TimeoutError


def _judge(job: tuple[str, str, str], place: Path) -> Verdict:
    import graftkit
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    task, model_type, name = job
    why = _build(model_type, name, place / "source")
    if why:
        return Verdict(*job, "not built", why)
    labels = {"labels": ["a", "b", "c"]} if task.endswith("classification") else {}
    operation = {"op": "replace_head", "task": task, "init": "normal", **labels}
    recipe = {
        "version": 1, "base_model": str(place / "source"), "operations": [operation], "output": str(place / "out"),
    }  # fmt: skip
    apply: Any = graftkit.apply
    skipped = ""
    try:
        try:
            report = apply(recipe)
        except VerificationFailed as error:
            if "needs other inputs" not in str(error):
                raise
            skipped = _line(error).split(";")[0]
            report = apply({**recipe, "verify": {"outputs": False}})
        check(place / "source", place / "out", labels=bool(labels))
    except (InputRejected, RecipeError) as error:
        already = "already, with every tensor" in str(error)
        return Verdict(*job, "works" if already else "refused", _line(error).replace(str(place), ""))
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        return Verdict(*job, "wrong", f"{type(error).__name__}: {_line(error)}".replace(str(place), ""))
    return Verdict(*job, "works", skipped or report.checks[0].skipped)


def _build(model_type: str, name: str, source: Path) -> str:
    """Write a small checkpoint of the base model, else of the class itself. Returns why not, or nothing."""
    from support.tiny import build
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    base = MODEL_MAPPING_NAMES.get(model_type)
    why = ""
    for candidate in (base if isinstance(base, str) else None, name):
        if candidate is None:
            continue
        shutil.rmtree(source, ignore_errors=True)
        try:
            build(candidate, source)
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
            why = why or _line(error)
        else:
            _pad_as_its_own_tokenizer(model_type, source)
            return ""
    return why


def _pad_as_its_own_tokenizer(model_type: str, source: Path) -> None:
    """The small tokenizer pads on the side that transformers' own for this model type pads on."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    path, side = source / "tokenizer_config.json", "right"
    with contextlib.suppress(AttributeError, ImportError):  # a tokenizer whose library is not installed says nothing
        side = getattr(transformers, TOKENIZER_MAPPING_NAMES.get(model_type) or "").padding_side
    if side == "left" and path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**config, "padding_side": "left"}), encoding="utf-8")


def check(source: Path, output: Path, *, labels: bool) -> None:
    """Reload with plain transformers and compare.

    Raises:
        Wrong: a tensor is missing or random, the labels are not there, or the backbone is not the source's.
    """
    import torch

    (old, _), (new, info), (again, _) = _load(source), _load(output), _load(output)
    for kind in ("missing_keys", "mismatched_keys"):
        if info[kind]:
            raise Wrong(f"{kind}: {sorted(map(str, info[kind]))[:3]}")
    state = again.state_dict()
    if any(not torch.equal(value, state[key]) for key, value in new.state_dict().items()):
        raise Wrong("two loads differ")
    if labels and (new.config.num_labels, new.config.id2label[1]) != (3, "b"):
        raise Wrong(f"labels are {new.config.id2label}")
    before, after = old.base_model.state_dict(), new.base_model.state_dict()
    if not before.keys() & after.keys():  # Mllama's text decoder has another name within the base model than alone
        before = {key: before[name] for key in after for name in before if name.endswith(f".{key.partition('.')[2]}")}
    common = before.keys() & after.keys()
    if new.base_model is new:  # its head stands among them
        common = {key for key in common if before[key].shape == after[key].shape}
    if not common:
        raise Wrong("the base models have no tensor in common")
    moved = sorted(key for key in common if not torch.equal(before[key], after[key]))
    if moved:
        raise Wrong(f"the backbone's {moved[0]} differs")


def _load(directory: Path) -> tuple[Any, Any]:
    import transformers

    name = json.loads((directory / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
    return model, info


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:240] or type(error).__name__


def markdown(verdicts: list[Verdict]) -> str:
    """The table as a page: counts, then what does not simply work."""
    import torch
    import transformers

    lines = ["# replace_head over every class", "", f"Written by `scripts/sweep_heads.py` with transformers {transformers.__version__} and",
             f"torch {torch.__version__}: each class's base model is built small with random weights, given the head of the task, reloaded",
             "twice with plain transformers, and its backbone compared with the source's by code that is not graftkit's.", "",
             "| task | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * len(VERDICTS)]  # fmt: skip
    for task in dict.fromkeys(item.task for item in verdicts):
        counts = Counter(item.verdict for item in verdicts if item.task == task)
        lines.append(f"| {task} | " + " | ".join(str(counts[verdict]) for verdict in VERDICTS) + " |")
    for verdict in ("wrong", "refused", "not built"):
        found = [item for item in verdicts if item.verdict == verdict]
        lines += ["", f"## {verdict}: {len(found)}", "", *_rows(found)]
    blind = [item for item in verdicts if item.verdict == "works" and item.reason]
    lines += ["", f"## works, the head's forward not run, or nothing was to do: {len(blind)}", "", *_rows(blind)]
    return "\n".join(lines) + "\n"


def _rows(found: list[Verdict]) -> list[str]:
    if not found:
        return ["none"]
    escaped = chr(92) + "|"
    rows = [f"| {item.task} | {item.class_name} | {item.reason.replace('|', escaped)} |" for item in found]
    return ["| task | class | reason |", "|---|---|---|", *rows]


def main() -> int:
    """Sweep, print, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, help="only this task")
    parser.add_argument("--match", default="", help="only classes whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="CPU seconds for one class")
    parser.add_argument(
        "--done", type=Path, help="file of verdicts: those in it are not made again, new ones go into it"
    )
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args()
    wanted = [job for task in ([arguments.task] if arguments.task else TASKS) for job in jobs(task, arguments.match)]
    verdicts = [one for one in _read(arguments.done) if (one.task, one.model_type, one.class_name) in set(wanted)]
    known = {(one.task, one.model_type, one.class_name) for one in verdicts}
    left = [job for job in wanted if job not in known]
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, maxtasksperchild=40) as pool:
        for verdict in pool.imap_unordered(functools.partial(judge, limit=arguments.limit), left):
            verdicts.append(verdict)
            if arguments.done:
                with arguments.done.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(verdict)) + "\n")
            if verdict.verdict != "works":
                print(f"{verdict.class_name:46} {verdict.verdict}: {verdict.reason}", flush=True)
        pool.close()
        pool.join()
    counts = Counter(verdict.verdict for verdict in verdicts)
    print(f"{len(wanted)} classes:", dict(counts))
    if arguments.out:
        order = {job: index for index, job in enumerate(wanted)}
        verdicts.sort(key=lambda item: order[item.task, item.model_type, item.class_name])
        arguments.out.write_text(markdown(verdicts), encoding="utf-8")
    return 1 if counts["wrong"] else 0


def _read(done: Path | None) -> list[Verdict]:
    if done is None or not done.exists():
        return []
    return [Verdict(**json.loads(line)) for line in done.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
