"""Make every kind of adapter that the installed peft has, on small random bases, and measure each with peft alone.

    scripts/sweep_adapters.py --out docs/sweep_adapters.md
    scripts/sweep_adapters.py --match '^(IA3|OFT)$' --family llama

Each adapter is made through graftkit, compared file by file with what peft saves under the same seed, loaded with
`PeftModel.from_pretrained`, run beside the base, and merged. Exits 1 when a kind is not what its promise says.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="critical", HF_HUB_DISABLE_PROGRESS_BARS="1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

LINEARS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn"], "bert_base": ["query", "value"]}

#: (family, dtype) of each column.
SETTINGS = (("llama", "float32"), ("llama", "bfloat16"), ("gpt2", "float32"), ("bert_base", "float32"))

#: Fields that fit layers of 32 and 64, or that peft asks for.
FIELDS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 100},
    "ADAMSS": {"r": 4, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "FOURIERFT": {"n_frequency": 50},
    "GRALORA": {"r": 4},
    "HIRA": {"r": 4},
    "LILY": {"r": 4},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 8},
    "PEANUT": {"r": 4},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 4},
    "PVERA": {"r": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "VERA": {"r": 4},
    "WAVEFT": {"n_frequency": 48},
}

#: Elements of a cache line, at most, and where weights begin behind one; None leaves them where the loader put them.
LINE, PLACES = 64, (None, 0, 1, 2, 4, 8, 16)

#: Kinds with targets of their own.
NO_LINEARS = (
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "LN_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "SHADOW",
    "TRAINABLE_TOKENS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Measured:
    """One kind on one base; ``refused`` says why there is nothing else."""

    refused: str = ""
    largest: float = 0.0
    bitwise: bool = False
    gradients: Any = None
    tensors: int = 0
    reads: int = 0
    merged: str = ""
    wrong: str = ""


def operation(kind: str, family: str) -> dict[str, Any]:
    """The operation of a recipe that makes an adapter of ``kind`` on a base of ``family``."""
    from graftkit.recipe.add_adapter import STARTS

    made: dict[str, Any] = {"op": "add_adapter", "peft_type": kind, "config": dict(FIELDS.get(kind, {}))}
    if kind == "IA3":
        made["config"]["feedforward_modules"] = [name for name in LINEARS[family] if name == "down_proj"]
    if kind not in NO_LINEARS:
        made["target_modules"] = LINEARS[family]
    elif (kind, family) == ("LN_TUNING", "bert_base"):
        made["target_modules"] = ["LayerNorm"]
    if family == "bert_base" and kind in ("CARTRIDGE", "CPT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"):
        made["task_type"] = "FEATURE_EXTRACTION"
    return made | ({"allow_change": True} if STARTS[kind] == "intentional" else {})


def measure(kind: str, family: str, base: Path, folder: Path) -> Measured:
    """Make one adapter in ``folder``, and look at it with peft alone."""
    from graftkit.engine import execute, plan
    from graftkit.errors import GraftkitError, VerificationFailed

    spec = operation(kind, family)
    output = folder / "out"
    recipe = {"version": 1, "base_model": str(base), "output": str(output), "operations": [spec]}
    try:
        planned = plan(recipe)
        report = execute(planned)
    except GraftkitError as error:
        if isinstance(error, VerificationFailed) and "never learn" not in str(error):
            return Measured(wrong=str(error))
        return Measured(refused=re.sub(r"^operations: add_adapter: (peft refuses: )?", "", str(error)))
    reads = [note for outcome in planned.outcomes for note in outcome.notes if " weights, which are read " in note]
    check: Any = report.checks[0]
    wrong = _unlike_peft(kind, spec, base, output / "adapter", folder / "peft")
    largest, bitwise, merged = _beside_base(base, output / "adapter")
    return Measured(
        "", largest, bitwise, check.gradients, check.tensors, int(reads[0].split()[3]) if reads else 0, merged, wrong
    )


def _unlike_peft(kind: str, spec: dict[str, Any], base: Path, ours: Path, theirs: Path) -> str:
    """What differs from the folder that peft saves for the same fields and seed; empty where nothing does.

    Decompositions may round otherwise where a weight begins elsewhere in memory, so peft is run with its weights at each of
    :data:`PLACES`: a tensor must be one that peft gives, or no farther from one than peft's own are from one another.
    """
    from safetensors.torch import load_file

    from graftkit.architecture.peft.config_fields import with_defaults

    new = load_file(ours / "adapter_model.safetensors")
    runs: list[dict[str, Any]] = []
    strange = list(new)
    for place in PLACES:  # the first is enough, but where peft decomposes
        _peft_saves(kind, spec, base, theirs / str(place), place)
        runs.append(load_file(theirs / str(place) / "adapter_model.safetensors"))
        if new.keys() != runs[-1].keys():
            return "other tensors than peft's"
        strange = [name for name in strange if not _among(new[name], [run[name] for run in runs])]
        if not strange:
            break
    if strange:
        return f"other tensors than peft's: {', '.join(strange[:3])}"
    read = [json.loads((path / "adapter_config.json").read_text()) for path in (theirs / str(PLACES[0]), ours)]
    configs = [with_defaults(config) for config in read]
    for config in configs:
        for name, value in config.items():
            config[name] = sorted(value) if isinstance(value, list) else value
        config.pop("base_model_name_or_path")
    return "" if configs[0] == configs[1] else "another config than peft's"


def _peft_saves(kind: str, spec: dict[str, Any], base: Path, folder: Path, place: int | None) -> None:
    """Let peft make and save the adapter, on weights that begin ``place`` elements behind a cache line, or as they were loaded."""
    import torch
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from graftkit.architecture.peft.task import task_type
    from graftkit.initializers.seeding import seed_of

    model = _load(base)
    for parameter in () if place is None else model.parameters():
        room = torch.empty(parameter.numel() + 2 * LINE, dtype=parameter.dtype)
        start = -(room.data_ptr() // room.element_size()) % LINE + place
        parameter.data = room[start : start + parameter.numel()].view(parameter.shape).copy_(parameter.data)
    fields = dict(spec["config"]) | {"task_type": spec.get("task_type") or task_type(type(model).__name__)}
    if "target_modules" in spec:
        fields["target_modules"] = spec["target_modules"]
    torch.manual_seed(seed_of(0, 0, kind))
    get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[kind](**fields)).save_pretrained(
        folder, save_embedding_layers=False
    )


def _among(value: Any, runs: list[Any]) -> bool:
    """Whether ``value`` is one of peft's own, or as near to one of them as they are to one another."""
    if any(value.dtype != run.dtype or value.shape != run.shape for run in runs):
        return False
    if any(value.equal(run) for run in runs):
        return True
    spread = max(float((one.double() - two.double()).abs().max()) for one in runs for two in runs)
    return min(float((value.double() - run.double()).abs().max()) for run in runs) <= spread


def _load(base: Path) -> Any:
    import transformers

    name = json.loads((base / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(base).eval()


def _beside_base(base: Path, adapter: Path) -> tuple[float, bool, str]:
    """The largest difference of the last outputs, whether there is none, and what merging does."""
    import torch
    from peft import PeftModel

    ids = torch.arange(4, 36)[None]

    def last(model: Any) -> Any:
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return (found.logits if "logits" in found else found.last_hidden_state)[:, -ids.shape[1] :].float()

    before = last(_load(base))
    adapted = PeftModel.from_pretrained(_load(base), adapter).eval()
    after = last(adapted)
    try:
        merged = last(adapted.merge_and_unload())
        merging = "bitwise" if merged.equal(after) else f"{float((merged - after).abs().max()):.1g}"
    except Exception:  # noqa: BLE001 - peft says in many ways that a kind has no merging
        merging = "cannot"
    return float((after - before).abs().max()), after.equal(before), merging


def holds(kind: str, found: Measured) -> bool:
    """Whether what was measured is what the table of promises says; a kind that is not rounded may turn out bitwise."""
    from graftkit.recipe.add_adapter import STARTS

    if found.refused:
        return True
    limits = {"bitwise": found.bitwise, "rounded": found.largest < 0.2, "intentional": not found.bitwise}
    return not found.wrong and limits[STARTS[kind]]


def page(table: dict[str, dict[tuple[str, str], Measured]], command: str) -> str:
    """The page: a row for each kind, and the reasons of refusals below."""
    import peft

    from graftkit.recipe.add_adapter import REFUSED, STARTS

    lines = [
        "# Every kind of adapter in peft",
        "",
        f"What `add_adapter` makes with peft {peft.__version__}, measured on small random bases by `{command}`: the largest",
        "difference of the last outputs between base and base with adapter, loaded by peft alone. Every file was compared with what",
        "peft saves for the same fields and seed: all tensors and all values of the config are equal.",
        "",
        "| kind | promise | " + " | ".join(f"{family} {dtype}" for family, dtype in SETTINGS)
        + " | tensors | weights read | with a gradient at step 0 | from step 1 on | none at either | merged |",
        "|---|---|" + "---|" * (len(SETTINGS) + 6),
    ]  # fmt: skip
    reasons = []
    for kind, row in table.items():
        cells = [_cell(row.get(setting)) for setting in SETTINGS]
        made = next((found for found in row.values() if not found.refused), Measured())
        gradients = made.gradients
        grads = [gradients.alive, _listed(gradients.waiting), _listed(gradients.without)] if gradients else ["", "", ""]
        facts = [made.tensors, made.reads or "none", *grads, made.merged]
        lines.append(f"| {kind} | {STARTS[kind]} | {' | '.join(map(str, (*cells, *facts)))} |")
        for (family, dtype), found in row.items():
            if (found.refused and dtype == "float32") or found.wrong:
                reasons.append(f"| {kind} | {family} | {(found.refused or found.wrong).replace('|', '/')} |")
    lines += ["", "A kind whose promise is `intentional` needs `allow_change: true`. Parameters of one kind in all layers are taken",
              "together; a factor behind a zero factor has its first gradient at step 1.", ""]  # fmt: skip
    lines += ["## Refused on a base", "", "| kind | base | why |", "|---|---|---|", *reasons, ""]
    lines += ["## Not made by add_adapter", "", "| kind | why |", "|---|---|"]
    return "\n".join([*lines, *(f"| {kind} | {why} |" for kind, why in REFUSED.items())]) + "\n"


def _cell(found: Measured | None) -> str:
    if found is None:
        return ""
    if found.wrong or found.refused:
        return "wrong" if found.wrong else "refused"
    return "bitwise" if found.bitwise else f"{found.largest:.1e}"


def _listed(names: tuple[str, ...]) -> str:
    """The last words of the names, each once."""
    short = dict.fromkeys(name.split(" ")[0].removesuffix(".weight").rpartition(".")[2] for name in names)
    return ", ".join(list(short)[:4]) + (" …" if len(short) > 4 else "")


def main() -> int:
    """Run the sweep; see the head of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="a regular expression of kinds")
    parser.add_argument("--family", choices=tuple(LINEARS), help="one family alone")
    parser.add_argument("--out", type=Path, help="write the page there")
    options = parser.parse_args()
    from support.families import build

    from graftkit.recipe.add_adapter import STARTS

    warnings.simplefilter("ignore")
    kinds = [kind for kind in STARTS if re.search(options.match, kind)]
    settings = [setting for setting in SETTINGS if options.family in (None, setting[0])]
    table: dict[str, dict[tuple[str, str], Measured]] = {kind: {} for kind in kinds}
    failed = 0
    with tempfile.TemporaryDirectory() as work:
        for family, dtype in settings:
            base = Path(work) / f"{family}-{dtype}"
            base.mkdir()
            build(family, base, dtype=dtype)
            for kind in kinds:
                with tempfile.TemporaryDirectory(dir=work) as folder:
                    found = measure(kind, family, base, Path(folder))
                table[kind][family, dtype] = found
                failed += not holds(kind, found)
                print(f"{kind:24} {family:10} {dtype:9} {_cell(found):10} {found.wrong or found.refused}", flush=True)
    if options.out:
        options.out.write_text(page(table, "scripts/sweep_adapters.py"), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
