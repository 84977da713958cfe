"""The figure of docs/initializers.md that shows what mup's learning rates do: `python scripts/plot_mup_transfer.py [FOLDER]`.

Needs matplotlib (`pip install -e .[docs]`) and three minutes. Prints the best learning rate of each width.
"""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from plot_initializers import GRID, prepare, sampled, save

from graftkit.initializers.fans import LINEAR
from graftkit.initializers.make import ModelFacts
from graftkit.initializers.mup import learning_rate_multiplier
from graftkit.initializers.seeding import generator_for

BASE, WIDTHS, RATES = 64, (64, 256, 1024), [2.0**power for power in range(-13, -2)]


def plot_transfer(folder: Path) -> None:
    """Loss after a short training by learning rate and width: with and without the multipliers of mup."""
    figure, both = plt.subplots(1, 2, figsize=(9.6, 3.1), sharey=True, constrained_layout=True)
    for axes, mup in zip(both, (False, True), strict=True):
        for width, colour in zip(WIDTHS, ("#9ec3e6", "#4f8fcb", "#1c4f86"), strict=True):
            losses = [trained_loss(width, rate, mup=mup) for rate in RATES]
            best = int(np.argmin(losses))
            axes.plot(RATES, losses, color=colour, linewidth=1.6, label=f"width {width}")
            axes.plot(RATES[best], losses[best], "o", color=colour, markersize=5)
            print(f"mup {mup}, width {width}: best rate 2^{math.log2(RATES[best]):.0f}, loss {losses[best]:.4f}")
        axes.set_xscale("log", base=2)
        axes.set(
            ylim=(0, 1.05),
            xlabel="learning rate",
            title=f"mup, base width {BASE}" if mup else "lecun_normal, one learning rate for all",
        )
        axes.title.set(fontsize=9.5)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    both[0].set_ylabel("loss after 200 steps")
    both[0].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, folder / "transfer.svg")


def trained_loss(width: int, rate: float, *, mup: bool, steps: int = 200, inputs: int = 32) -> float:
    """Loss of a three-layer network on a random teacher, over the last 20 of ``steps`` Adam steps; 1 is that of predicting zero."""
    torch.manual_seed(0)
    shapes = [(width, inputs), (width, width), (width, width), (1, width)]
    weights, groups = [], []
    for index, shape in enumerate(shapes):
        readout, first = index == len(shapes) - 1, index == 0
        around = ModelFacts(width=width, readout=readout)
        scaled = mup and not first
        written = {"scheme": "mup", "base_width": BASE} if scaled else "lecun_normal"
        weight = torch.nn.Parameter(sampled(written, shape, f"layer {index}", around))
        factor = learning_rate_multiplier(shape, LINEAR, width_ratio=width / BASE) if scaled else 1.0
        weights.append(weight)
        groups.append({"params": [weight], "lr": rate * factor})
    optimizer, generator = torch.optim.Adam(groups), generator_for("data")
    teacher = torch.randn(inputs, 8, generator=generator) / inputs**0.5
    losses = []
    for _ in range(steps):
        x = torch.randn(256, inputs, generator=generator)
        y = (x @ teacher).mul(2).sin().sum(1, keepdim=True) / 2
        value = x
        for weight in weights[:-1]:
            value = torch.relu(value @ weight.T)
        loss = (value @ weights[-1].T - y).square().mean() / y.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return min(float(np.mean(losses[-20:])), 2.0) if math.isfinite(losses[-1]) else 2.0


if __name__ == "__main__":
    plot_transfer(prepare())
