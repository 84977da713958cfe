"""Damage one input at random, run a command on it in a child process with limits, and keep what did not end as it should.

Called by scripts/fuzz; every case is made again from its kind and number: --again KIND NUMBER.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz_mutations import MESSAGES, as_json, damage_bytes, damage_json, damage_safetensors, odd_template
from reliability_page import note_fuzz, write_page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
KEPT = ROOT / "out" / "fuzz"

#: Seconds of the processor and bytes above the loaded libraries that a case may take, and seconds until it is given up.
SECONDS, BYTES, PATIENCE = 20, 1 << 30, 600

#: The codes that a command may end with.
CODES = {0, 2, 3, 4, 6}

TOKENS = {"op": "extend_vocab", "special_tokens": ["<|a|>"], "tokens": ["zz"], "init": "subword_mean"}
LORA = {"op": "add_lora", "r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
HEAD = {"op": "replace_head", "task": "sequence_classification", "labels": ["no", "yes"], "pad_token": "</s>"}
FITTED = {**HEAD, "init": {"scheme": "ridge", "examples": "examples.jsonl"}}
RECIPES: tuple[list[dict[str, Any]], ...] = (
    [TOKENS], [LORA], [FITTED], [TOKENS, LORA], [{**HEAD, "init": "zeros"}, LORA],
    [{"op": "reinit", "layers": "last 1", "init": {"scheme": "normal", "std": 0.02}}],
    [{"op": "merge_adapter", "adapter": "adapter"}], [{"op": "resize_adapter", "adapter": "adapter", "r": 2}],
    [{"op": "add_adapter", "peft_type": "OFT", "target_modules": "all-linear", "config": {"oft_block_size": 4}}],
    [{"op": "extract_lora", "fine_tuned": "model", "r": 2}],
    [{"op": "combine_adapters", "adapters": [{"path": "adapter", "weight": 0.5}]}],
    [{"op": "edit_tensors", "steps": [{"scale": {"tensors": [".*norm.*"], "factor": 0.5}}, {"assert": {"finite": [".*"]}},
                                      {"rename": {r"model\.(.*)": r"\1"}}]}],
    [{"op": "rename_tokens", "names": {"</s>": "<end>"}}],
)  # fmt: skip

#: A case: the file that it damages, how, and the commands that are run on it; RECIPE is written from operations.
Damage = Callable[[bytes, random.Random], bytes]


def _json(raw: bytes, dice: random.Random) -> bytes:
    return damage_bytes(raw, dice) if dice.random() < 0.1 else as_json(damage_json(json.loads(raw), dice))


def _new_template(raw: bytes, dice: random.Random) -> bytes:
    recipe = json.loads(raw)
    recipe["operations"][0]["chat_template"] = odd_template(dice)
    return as_json(recipe)


PLANS = [["plan", "recipe.yaml"], ["apply", "recipe.yaml", "-q"]]
LOOKS = [["inspect", "model"], ["verify", "clean", "model", "--no-outputs"], ["diff", "clean", "model"], *PLANS]
ADAPTER = [
    ["verify", "--adapter", "adapter", "model", "--no-outputs"],
    ["verify", "--adapter", "adapter", "model"],
    *PLANS,
]
KINDS: dict[str, tuple[str, Damage, list[list[str]], tuple[int, ...]]] = {
    "recipe": ("recipe.yaml", _json, [["validate", "recipe.yaml"], *PLANS], tuple(range(len(RECIPES)))),
    "chat template": ("recipe.yaml", _new_template, PLANS, (0, 3)),
    "chat template of another": ("model/chat_template.jinja", lambda _, dice: odd_template(dice).encode(), LOOKS, (0, 1, 12)),
    "header": ("model/model-00001-of-00002.safetensors", damage_safetensors, LOOKS, (0, 1, 5, 11)),
    "index": ("model/model.safetensors.index.json", _json, LOOKS, (0, 1, 5)),
    "config": ("model/config.json", _json, LOOKS, (0, 1, 2, 4, 5)),
    "tokenizer": ("model/tokenizer.json", _json, LOOKS, (0, 1, 2, 3)),
    "tokenizer config": ("model/tokenizer_config.json", _json, LOOKS, (0, 1, 2)),
    "generation config": ("model/generation_config.json", _json, LOOKS, (0, 1, 4)),
    "adapter config": ("adapter/adapter_config.json", _json, ADAPTER, (6, 7, 10)),
    "adapter": ("adapter/adapter_model.safetensors", damage_safetensors, ADAPTER, (6, 7, 10)),
    "examples": ("examples.jsonl", lambda raw, dice: b"\n".join(
        _json(line, dice) if dice.random() < 0.1 else line for line in raw.splitlines()), PLANS, (2,)),
    "report": ("made/graft_report.json", _json, [
        ["verify", "clean", "made", "--no-outputs"], ["report", "made"], ["verify", "--adapter", "made/adapter", "clean", "--no-outputs"]], (0,)),
}  # fmt: skip


def prepare(home: Path) -> None:
    """Make what all cases are made from: a tiny base in two shards, an adapter on it, examples, an output with its report."""
    from support.adapters import make_adapter
    from support.command import here

    base, adapter = make_adapter(home / "made-by-peft", "LlamaForCausalLM", target_modules=["q_proj", "down_proj"])
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(base, max_shard_size=size * 2 // 3)
    (base / "model.safetensors").unlink(missing_ok=True)
    shutil.move(base, home / "clean")
    (home / "clean" / "chat_template.jinja").write_text(MESSAGES)
    shutil.move(adapter, home / "adapter")
    edited = json.loads((home / "adapter" / "adapter_config.json").read_text())
    edited["base_model_name_or_path"] = "model"
    (home / "adapter" / "adapter_config.json").write_text(json.dumps(edited))
    rows = [{"text": f"text number {place} of the examples", "label": ("no", "yes")[place % 2]} for place in range(12)]
    (home / "examples.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    write_recipe(home, RECIPES[3], base="clean", output="made")
    done = here("apply", "recipe.yaml", "-q", cwd=home)
    if done.returncode:
        raise SystemExit(f"the clean recipe does not apply: {done.stderr}")


def write_recipe(home: Path, operations: list[dict[str, Any]], base: str = "model", output: str = "out") -> None:
    """Write recipe.yaml with these operations."""
    recipe = {"version": 1, "base_model": base, "output": output, "operations": operations, "verify": {"outputs": True}}
    (home / "recipe.yaml").write_text(json.dumps(recipe))


def make_case(home: Path, room: Path, kind: str, number: int) -> list[str]:
    """Fill ``room`` with links to what is clean and one damaged file; return the command."""
    dice = random.Random(f"{kind} {number}")  # noqa: S311 - to be made again
    file, damage, commands, operations = KINDS[kind]
    for source, target in (("clean", "clean"), ("clean", "model"), ("adapter", "adapter"), ("made", "made")):
        shutil.copytree(home / source, room / target, copy_function=os.link)
    shutil.copy(home / "examples.jsonl", room)
    chosen = RECIPES[dice.choice(operations)]
    write_recipe(room, chosen)
    raw = (room / file).read_bytes()
    (room / file).unlink()
    (room / file).write_bytes(damage(raw, dice))
    wanted = [command for command in commands if dice.random() < 0.5] or commands
    return dice.choice(wanted)


def run_case(room: Path, command: list[str]) -> dict[str, Any]:
    """Run a command in a child of this process: exit code, lines, seconds and bytes above what the libraries hold."""
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    pid = os.fork()
    if not pid:
        _in_child(room, command)
    status, usage = _wait(pid, start + PATIENCE)
    seconds = usage.ru_utime + usage.ru_stime if time.perf_counter() - start < PATIENCE else PATIENCE
    out, err = ((room / name).read_text(errors="replace") for name in ("stdout", "stderr"))
    code = os.waitstatus_to_exitcode(status)
    found = {"code": code, "stderr": err, "seconds": round(seconds, 2), "bytes": (usage.ru_maxrss << 10) - before}
    return {**found, "fault": fault_of(code, err, out, seconds, found["bytes"])}


def fault_of(code: int, err: str, out: str, seconds: float, nbytes: int) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    lines = err.splitlines()
    wrong = {
        f"took {SECONDS} seconds of the processor or more": seconds >= SECONDS,
        f"exit code {code}": code not in CODES,
        "a traceback": "Traceback" in err + out,
        "a line that is not graftkit's": any(not line.startswith("graftkit: ") for line in lines),
        f"{len(lines)} lines": code == 3 and len(lines) != 1,
        "a line, and exit code 0": code == 0 and bool(err),
        "a control character": not (err + out).replace("\n", "").replace("\t", "").isprintable(),
        f"took {nbytes >> 20} MB": nbytes > BYTES,
    }
    return next((what for what, is_so in wrong.items() if is_so), "")


def _in_child(room: Path, command: list[str]) -> None:
    """Become the command: its output in files, its memory bounded."""
    try:
        os.chdir(room)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS + 5, SECONDS + 5))
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * BYTES, size + 4 * BYTES))
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), "utf-8") for number in (1, 2)
        )
        import torch

        from graftkit.cli import main

        torch.set_num_threads(1)  # makes torch's pool anew behind a fork, before two threads do so at once
        os._exit(main([*command, *(["--debug"] if os.environ.get("DEBUG") else [])]))
    except BaseException as error:  # noqa: BLE001 - the parent must see it
        sys.__stderr__.write(f"Traceback: {error!r}\n")
        os._exit(99)


def _wait(pid: int, until: float) -> tuple[int, resource.struct_rusage]:
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage
        if time.perf_counter() > until:
            os.kill(pid, signal.SIGKILL)
            return os.wait4(pid, 0)[1:]
        time.sleep(0.003)


def cases(kinds: list[str], first: int) -> Iterator[tuple[str, int]]:
    """Each kind in turn, without end."""
    number = first
    while True:
        yield from ((kind, number) for kind in kinds)
        number += 1


@contextlib.contextmanager
def fresh(home: Path) -> Iterator[Path]:
    """A folder on the same file system as what is linked into it."""
    room = Path(tempfile.mkdtemp(prefix="case-", dir=home))
    try:
        yield room
    finally:
        shutil.rmtree(room)


def keep(room: Path, kind: str, number: int, command: list[str], found: dict[str, Any]) -> None:
    """Keep the damaged file and how the command ended."""
    place = KEPT / f"{kind.replace(' ', '-')}-{number}"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(room / KINDS[kind][0], place)
    shutil.copy(room / "recipe.yaml", place)
    (place / "found.json").write_text(json.dumps({"command": command, **found}, indent=2))


def main() -> int:
    """Fuzz for the seconds that were asked for; exit code 1 where anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0, help="the number of the first case of each kind")
    parser.add_argument("--only", action="append", choices=list(KINDS), help="this kind alone")
    parser.add_argument("--again", nargs=2, metavar=("KIND", "NUMBER"), help="run one case and print how it ended")
    parser.add_argument("--page", action="store_true", help="write what was tried into docs/reliability.md")
    options = parser.parse_args()
    import peft  # noqa: F401 - loaded once, for all the children

    from graftkit.report import terminal  # noqa: F401

    start, faults = time.perf_counter(), Counter[str]()
    tried, codes = Counter[str](), Counter[tuple[str, int]]()
    with tempfile.TemporaryDirectory(prefix="graftkit-fuzz-") as folder:
        home = Path(folder)
        prepare(home)
        gc.freeze()
        todo = (
            [(options.again[0], int(options.again[1]))]
            if options.again
            else cases(options.only or list(KINDS), options.seed)
        )
        for kind, number in todo:
            if time.perf_counter() - start > options.seconds:
                break
            with fresh(home) as room:
                command = make_case(home, room, kind, number)
                found = run_case(room, command)
                tried[kind] += 1
                codes[kind, found["code"]] += 1
                if options.again:
                    print(" ".join(command), json.dumps(found, indent=2), (room / "stdout").read_text(), sep="\n")
                if found["fault"]:
                    keep(room, kind, number, command, found)
                    faults[kind] += 1
                    line = found["stderr"].strip().splitlines()[-1:] or [""]
                    print(f"{kind} {number}: {' '.join(command)}: {found['fault']}: {line[0][:200]}", flush=True)
    seconds = time.perf_counter() - start
    print(
        f"{sum(tried.values())} cases in {seconds:.0f} s, {faults.total()} faults; exit codes {Counter(c for _, c in codes.elements())}"
    )
    if not options.again:
        note_fuzz(tried, codes, faults, seconds)
    if options.page:
        write_page()
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
