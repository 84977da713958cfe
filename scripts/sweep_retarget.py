"""Retarget adapters between every vision-language wrapper of transformers' mappings and its text model, and check each by itself.

    python scripts/sweep_retarget.py --jobs 2 --done sweep.jsonl --out docs/sweep_retarget.md   # goes on where it was stopped
    python scripts/sweep_retarget.py --match '^Llava'

A small random checkpoint of the wrapper is built. Its text model (with the head for causal language models where transformers has
one, and without) and the wrapper's own base model get the wrapper's weights and a LoRA on every linear. The adapter is retargeted
to the wrapper, and from there back. Plain peft and transformers say whether each factor lies on the weight that it was made
for. Exits 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from sweep_pool import sweep
from sweep_retarget_check import NoPair, Wrong, check_places, check_same, inner_model, train
from sweep_vocab_check import one_line

VERDICTS = ("works", "refused", "wrong", "not built")

#: transformers' mappings of the wrappers, and of the classes inside them by what they are to the wrapper.
WRAPPERS = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")
INSIDE = {"language model": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "text model": "MODEL_MAPPING_NAMES"}
BACKBONE = "backbone"

#: Seconds that one wrapper may take.
LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one pair: ``inner`` is the class inside, ``relation`` what it is to the wrapper, ``outputs`` how they compared."""

    wrapper: str
    relation: str
    inner: str
    verdict: str
    reason: str = ""
    outputs: str = ""


def wrappers(match: str) -> list[str]:
    """The classes of wrappers, each once."""
    from transformers.models.auto import modeling_auto

    entries = [entry for name in WRAPPERS for entry in getattr(modeling_auto, name, {}).values()]
    names = [name for entry in entries for name in ((entry,) if isinstance(entry, str) else entry)]
    return [name for name in dict.fromkeys(names) if re.search(match, name)]


def judge(name: str, place: Path) -> list[dict[str, str]]:
    """Build a wrapper, and retarget an adapter of each class inside it."""
    import transformers
    from support.tiny import build

    warnings.simplefilter("ignore")
    try:
        build(name, place / "base")
        _shorten(place / "base/config.json")
        model = getattr(transformers, name).from_pretrained(place / "base").eval()
    except Exception as error:  # noqa: BLE001 - a class that cannot be built may fail in any way
        return [asdict(Verdict(name, "", "", "not built", one_line(error)))]
    found = list(_inside(model))
    if not found:
        return [asdict(Verdict(name, "", "", "not built", "transformers names no text model of it"))]
    return [
        asdict(_judge(name, relation, inner, place, place / str(number)))
        for number, (relation, inner) in enumerate(found)
    ]


def _shorten(path: Path) -> None:
    """A default that counts more layers than the small checkpoint can have is refused as out of bounds when it is opened."""
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'("max_window_layers": )\d+', r"\g<1>1", text), encoding="utf-8")


def _inside(model: Any) -> Iterator[tuple[str, str]]:
    """Yield the classes inside a wrapper, with what they are to it."""
    from transformers.models.auto import modeling_auto

    text = model.config.get_text_config()
    if text is not model.config:
        for relation, mapping in INSIDE.items():
            names = getattr(modeling_auto, mapping).get(text.model_type)
            for name in (names,) if isinstance(names, str) else names or ():
                yield relation, name
    base = modeling_auto.MODEL_MAPPING_NAMES.get(model.config.model_type)
    if isinstance(base, str) and base != type(model).__name__:
        yield BACKBONE, base


def _judge(wrapper: str, relation: str, inner: str, place: Path, own: Path) -> Verdict:
    from graftkit.errors import InputRejected, RecipeError, VerificationFailed

    job = (wrapper, relation, inner)
    own.mkdir()
    try:
        outputs = _both_ways(wrapper, inner, place / "base", own)
    except NoPair as error:
        return Verdict(*job, "not built", one_line(error))
    except (InputRejected, RecipeError) as error:
        if "already: it loads as it is" in str(error):
            return Verdict(*job, "works", outputs="nothing to rename")
        return Verdict(*job, "refused", one_line(error).replace(f"{own}/", "").replace(f"{place}/", ""))
    except VerificationFailed as error:
        return Verdict(*job, "wrong", one_line(error))
    except Exception as error:  # noqa: BLE001 - anything else is what the sweep looks for
        return Verdict(*job, "wrong", f"{type(error).__name__}: {one_line(error)}")
    return Verdict(*job, "works", outputs=outputs)


def _both_ways(wrapper: str, inner: str, base: Path, own: Path) -> str:
    """Retarget to the wrapper and back; returns how the outputs compared."""
    import transformers

    model = getattr(transformers, wrapper).from_pretrained(base).eval()
    kind = getattr(transformers, inner, None)
    if kind is None:
        raise NoPair("is in a mapping, and transformers does not offer it")
    small = inner_model(model, kind)
    train(small, own / "adapter")
    there = _retarget(base, own / "adapter", own / "there", None)
    check_places(own / "adapter", small, own / "there/adapter", model)
    back = _retarget(base, own / "there/adapter", own / "back", inner)
    check_same(own / "adapter", own / "back/adapter")
    return " / ".join(_outputs(report) for report in (there, back))


def _retarget(base: Path, adapter: Path, output: Path, to: str | None) -> Any:
    import graftkit

    operation = {"op": "retarget_adapter", "adapter": str(adapter), **({"to": to} if to else {})}
    return graftkit.apply({"version": 1, "base_model": str(base), "operations": [operation], "output": str(output)})


def _outputs(report: Any) -> str:
    """How the outputs of both classes compared, in a few words."""
    (found,) = report.checks
    outputs = found.outputs
    if outputs is None:
        return found.not_run
    if outputs.ran and not outputs.effect:
        raise Wrong("the adapter has no effect")
    word = "bitwise" if not outputs.changed else "within noise"
    left = f"not compared: {outputs.not_compared}" if outputs.not_compared else ""
    return ", ".join(part for part in (word if outputs.source else "", left) if part)


def markdown(verdicts: list[Verdict]) -> str:
    """The table as a page: counts, then what does not simply work."""
    import peft
    import transformers

    every = wrappers("")
    left = [name for name in every if name not in {item.wrapper for item in verdicts}]
    lines = ["# retarget_adapter over every wrapper and what is inside it", "",
             f"Written by `scripts/sweep_retarget.py` with transformers {transformers.__version__} and peft {peft.__version__}: a LoRA on every",
             "linear of a text model, or of the wrapper's base model, is retargeted to the wrapper that transformers' mappings name, and",
             "back. Code that is not graftkit's says whether each factor lies on the weight that it was made for, whether peft loads all",
             "of them, and whether the way back gives the same bytes by the same names.", "",
             f"{len(every) - len(left)} of the {len(every)} wrappers that transformers names were run.", "",
             "| inside the wrapper | " + " | ".join(VERDICTS) + " |", "|---|" + "---:|" * len(VERDICTS)]  # fmt: skip
    for relation in (*INSIDE, BACKBONE, ""):
        counts = Counter(item.verdict for item in verdicts if item.relation == relation)
        if counts:
            lines.append(
                f"| {relation or 'nothing'} | " + " | ".join(str(counts[verdict]) for verdict in VERDICTS) + " |"
            )
    for verdict in ("wrong", "refused", "not built"):
        found = [(item, item.reason) for item in verdicts if item.verdict == verdict]
        lines += ["", f"## {verdict}: {len(found)}", "", *_rows(found, "reason")]
    apart = [
        (item, item.outputs) for item in verdicts if item.verdict == "works" and item.outputs != "bitwise / bitwise"
    ]
    works = sum(item.verdict == "works" for item in verdicts)
    lines += [
        "",
        f"## works, the outputs of both classes not bitwise equal or not compared: {len(apart)} of {works}",
        "",
    ]
    lines += _rows(apart, "there / back")
    if left:
        lines += ["", f"## not run: {len(left)}", "", ", ".join(left)]
    return "\n".join(lines) + "\n"


def _rows(found: list[tuple[Verdict, str]], title: str) -> list[str]:
    if not found:
        return ["none"]
    escaped = chr(92) + "|"
    rows = [f"| {item.wrapper} | {item.inner} | {text.replace('|', escaped)} |" for item, text in found]
    return [f"| wrapper | inside | {title} |", "|---|---|---|", *rows]


def main() -> int:
    """Sweep, print, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only wrappers whose name this regular expression finds")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one wrapper")
    parser.add_argument(
        "--done", type=Path, help="file of verdicts: wrappers in it are not run again, new ones go into it"
    )
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args()
    wanted = wrappers(arguments.match)
    verdicts = [one for one in _read(arguments.done) if one.wrapper in wanted]
    left = [name for name in wanted if name not in {one.wrapper for one in verdicts}]
    for name, said, why, _ in sweep(left, arguments.jobs, arguments.limit, judge):
        made = [Verdict(**one) for one in said] if said is not None else [Verdict(name, "", "", "wrong", why)]
        verdicts += made
        if arguments.done:
            with arguments.done.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(one)) + "\n" for one in made)
        for one in made:
            print(f"{one.wrapper:44} {one.inner:34} {one.verdict}: {one.reason or one.outputs}", flush=True)
    counts = Counter(verdict.verdict for verdict in verdicts)
    print(f"{len(verdicts)} pairs:", dict(counts))
    if arguments.out:
        verdicts.sort(key=lambda item: wanted.index(item.wrapper))
        arguments.out.write_text(markdown(verdicts), encoding="utf-8")
    return 1 if counts["wrong"] else 0


def _read(done: Path | None) -> list[Verdict]:
    if done is None or not done.exists():
        return []
    return [Verdict(**json.loads(line)) for line in done.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
