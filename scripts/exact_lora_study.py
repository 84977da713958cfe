"""What the exact form of PiSSA does to the learning rate: 100 steps beside peft's own PiSSA, on the model that ships.

    python scripts/exact_lora_study.py [--plot]

Same texts in the same order, the same seed, AdamW without decay, in float32. Prints the table of docs/lora.md; `--plot` also draws
docs/img/exact_lora.svg, for which matplotlib is needed (`pip install -e .[docs]`). Takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "recipes" / "models" / "demo-lm"
STEPS, BATCH, LENGTH, RANK = 100, 8, 48, 8
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def texts() -> Any:
    """Ids of the docstrings that ship with the recipes. *Shape:* ``(batches, BATCH, LENGTH)``."""
    import torch
    from transformers import AutoTokenizer

    lines = (ROOT / "recipes" / "examples" / "docstrings.jsonl").read_text(encoding="utf-8").splitlines()
    ids = AutoTokenizer.from_pretrained(DEMO)("\n".join(json.loads(line)["text"] for line in lines))["input_ids"]
    whole = len(ids) // (BATCH * LENGTH)
    return torch.tensor(ids[: whole * BATCH * LENGTH]).view(whole, BATCH, LENGTH)


def base() -> Any:
    """The model that ships, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32")


def peft_form() -> Any:
    """PiSSA as peft makes it: the principal part is taken out of the base."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    return get_peft_model(base(), config)


def exact_form(adapter: Path) -> Any:
    """The adapter that graftkit made for the untouched base, as a trainer loads it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base(), adapter, is_trainable=True)


def make_exact(folder: Path) -> Path:
    """Make the exact form by its recipe; return the adapter's folder."""
    import graftkit

    operation = {"op": "add_lora", "r": RANK, "lora_alpha": RANK, "init_lora_weights": "pissa", "exact": True}
    recipe = {"version": 1, "base_model": str(DEMO), "operations": [operation], "output": str(folder / "out")}
    graftkit.apply(recipe)
    return folder / "out" / "adapter"


def losses(model: Any, batches: Any, rate: float, steps: int = STEPS) -> list[float]:
    """The loss of each of ``steps`` AdamW steps, before the step is taken."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, rate, weight_decay=0.0)
    found = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        loss = model(input_ids=batch, labels=batch).loss
        found.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return found


def difference(found: Sequence[float], wanted: Sequence[float]) -> tuple[float, float]:
    """Mean and largest relative difference of two loss curves."""
    each = [abs(a - b) / b for a, b in zip(found, wanted, strict=True)]
    return sum(each) / len(each), max(each)


def study(rates: Sequence[float] = RATES, steps: int = STEPS) -> dict[float, dict[str, list[float]]]:
    """Loss curves by the learning rate of peft's form: ``peft`` at it, ``same`` and ``half`` for the exact form."""
    batches = texts()
    with tempfile.TemporaryDirectory() as room:
        adapter = make_exact(Path(room))
        return {
            rate: {
                "peft": losses(peft_form(), batches, rate, steps),
                "same": losses(exact_form(adapter), batches, rate, steps),
                "half": losses(exact_form(adapter), batches, rate / 2, steps),
            }
            for rate in rates
        }


def table(curves: dict[float, dict[str, list[float]]]) -> str:
    """The Markdown table of docs/lora.md."""
    rows = [
        "| lr of plain PiSSA | its loss, first -> last ten steps | exact form at lr: mean, largest difference | exact form at lr/2 |",
        "|---:|---|---|---|",
    ]
    for rate, found in curves.items():
        ends = f"{found['peft'][0]:.3f} -> {sum(found['peft'][-10:]) / 10:.3f}"
        same, half = ("{:.2%}, {:.2%}".format(*difference(found[name], found["peft"])) for name in ("same", "half"))
        rows.append(f"| {rate:g} | {ends} | {same} | {half} |")
    return "\n".join(rows)


def plot(curves: dict[float, dict[str, list[float]]], path: Path) -> None:
    """Both loss curves for each learning rate, over one another."""
    from matplotlib import pyplot as plt
    from plot_initializers import GRID, save, style

    style()
    figure, panels = plt.subplots(1, len(curves), figsize=(9.6, 2.8), sharey=True, constrained_layout=True)
    looks = {"same": ("#d9a05b", "-"), "peft": ("#1c4f86", "-"), "half": ("#9ec3e6", ":")}
    names = {"same": "exact, lr", "peft": "plain PiSSA, lr", "half": "exact, lr/2"}
    for axes, (rate, found) in zip(panels, curves.items(), strict=True):
        for name, (colour, line) in looks.items():
            axes.plot(range(0, STEPS, 2), found[name][::2], line, color=colour, linewidth=1.6, label=names[name])
        axes.set(title=f"lr {rate:g}", xlabel="step")
        axes.title.set(fontsize=9.5)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("loss")
    panels[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def main() -> None:
    """Train, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", action="store_true", help="also draw docs/img/exact_lora.svg")
    options = parser.parse_args()
    curves = study()
    print(table(curves))
    if options.plot:
        plot(curves, ROOT / "docs" / "img" / "exact_lora.svg")


if __name__ == "__main__":
    main()
