"""The figures of docs/initializers.md, made by the initializers themselves: `python scripts/plot_initializers.py [FOLDER]`.

Needs matplotlib (`pip install -e .[docs]`) and a minute. The same figures come out each time.
"""

import math
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import TypeAdapter
from safetensors import safe_open

from graftkit.initializers.fans import LINEAR
from graftkit.initializers.lsuv import lsuv
from graftkit.initializers.make import ModelFacts, make
from graftkit.initializers.matched import row_norms
from graftkit.initializers.seeding import generator_for
from graftkit.recipe import WeightScheme

ROOT = Path(__file__).parent.parent
WIDTH, WIDER, LAYERS = 768, 3072, 12
RANGE = 4.6
#: Signals below this leave the plot.
FLOOR = 1e-12
SQUARE, WIDE, INK, GRID = "#2f6db3", "#e08a2e", "#333333", "#dddddd"

#: What each panel shows, as a recipe would write it; one file of docs/img for each.
SPECTRA = {
    "zeros": "zeros",
    "ones": "ones",
    "constant": {"scheme": "constant", "value": 0.001},
    "normal": {"scheme": "normal", "std": 0.02},
    "trunc_normal": {"scheme": "trunc_normal", "std": 0.02},
    "uniform": {"scheme": "uniform", "a": -0.05, "b": 0.05},
    "depth_scaled": {"scheme": "depth_scaled", "std": 0.02},
    "xavier_uniform": "xavier_uniform",
    "xavier_normal": "xavier_normal",
    "kaiming_uniform": {"scheme": "kaiming_uniform", "nonlinearity": "relu"},
    "kaiming_normal": {"scheme": "kaiming_normal", "mode": "fan_out", "nonlinearity": "relu"},
    "lecun_normal": "lecun_normal",
    "orthogonal": "orthogonal",
    "mup": {"scheme": "mup", "base_width": 256},
    "matched": "matched",
}


def sampled(written: object, shape: tuple[int, ...], name: str, around: ModelFacts) -> torch.Tensor:
    """One weight by the scheme ``written``, as a recipe writes it."""
    scheme = TypeAdapter(WeightScheme).validate_python(written)
    return make(scheme, shape, torch.float32, LINEAR, generator_for(0, 0, name), around)


def marchenko_pastur(values: np.ndarray, variance: float, shape: torch.Size) -> np.ndarray:
    """Density of the singular values of a matrix of independent elements, in the limit of large sizes."""
    many, few = max(shape), min(shape)
    low, high = (
        math.sqrt(variance) * (math.sqrt(many) - math.sqrt(few)),
        math.sqrt(variance) * (math.sqrt(many) + math.sqrt(few)),
    )
    inside = np.clip((high**2 - values**2) * (values**2 - low**2), 0, None)
    with np.errstate(invalid="ignore"):
        return np.sqrt(inside) / (math.pi * variance * few * np.maximum(values, 1e-9))


def plot_spectra(folder: Path) -> None:
    """One small figure for each scheme: the singular values of a square and of a tall matrix."""
    for name, written in SPECTRA.items():
        figure, axes = plt.subplots(figsize=(3.4, 1.25))
        for colour, shape in ((SQUARE, (WIDTH, WIDTH)), (WIDE, (WIDER, WIDTH))):
            around = ModelFacts(layers=LAYERS, width=WIDTH, norms=trained_norms())
            weight = sampled(written, shape, name, around)
            draw_spectrum(axes, weight, colour)
        finish(axes)
        save(figure, folder / f"spectrum_{name}.svg")
    figure, axes = plt.subplots(figsize=(3.4, 1.25))
    module = network("lsuv", 12, WIDTH, "lsuv")
    lsuv(module, torch.randn(256, WIDTH, generator=generator_for("batch")))
    for layer in module[::2]:
        axes.vlines(float(torch.linalg.matrix_norm(layer.weight.data, 2)), 0, 1, color=SQUARE, linewidth=1.5, alpha=0.6)
    finish(axes)
    save(figure, folder / "spectrum_lsuv.svg")


def finish(axes: Axes) -> None:
    """The frame that all spectra share."""
    axes.set(xlim=(-0.06, RANGE), ylim=(0, 1.16), yticks=[], xticks=range(5))
    axes.tick_params(length=2)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def draw_spectrum(axes: Axes, weight: torch.Tensor, colour: str) -> None:
    """A histogram of the singular values with the limit law of equal variance; spikes where there are only a few."""
    singular = torch.linalg.svdvals(weight.double()).numpy()
    values, counts = np.unique(singular.round(3), return_counts=True)
    if len(values) < 8:
        for value, count in zip(values, counts, strict=True):
            inside = value < RANGE
            axes.vlines(
                min(value, RANGE), 0, 1 if count > 1 else 0.3, color=colour, linewidth=3 if inside else 0, alpha=0.8
            )
            if not inside:
                up = 0.62 if colour == WIDE else 0.2
                axes.text(RANGE, up, f"and one of {value:.0f} →", ha="right", color=colour, fontsize=8)
        return
    bulk = singular[singular < RANGE]
    height, edges = np.histogram(bulk, bins=44)
    width = edges[1] - edges[0]
    law = marchenko_pastur(grid := np.linspace(edges[0], edges[-1], 300), float(weight.double().var()), weight.shape)
    peak = max(float((height / (len(singular) * width)).max()), 1e-9)
    axes.stairs(height / (len(singular) * width) / peak, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
    axes.plot(grid, law / peak, color=colour, linewidth=1.1)


def trained_norms() -> torch.Tensor:
    """Norms of the rows of a trained matrix of the model that ships with the project."""
    with safe_open(ROOT / "recipes" / "models" / "demo-lm" / "model.safetensors", "pt") as file:
        return row_norms(file.get_tensor("model.layers.1.mlp.gate_proj.weight"))


def network(written: object, depth: int, width: int, name: str) -> torch.nn.Sequential:
    """A ReLU network without biases: its weights by one scheme, or by lsuv."""
    layers = [torch.nn.Linear(width, width, bias=False) for _ in range(depth)]
    module = torch.nn.Sequential(*(part for layer in layers for part in (layer, torch.nn.ReLU())))
    if written != "lsuv":
        for index, layer in enumerate(layers):
            layer.weight.data = sampled(
                written, (width, width), f"{name}.{index}", ModelFacts(layers=depth, width=width)
            )
    return module


def plot_signal(folder: Path) -> None:
    """Root mean square of the signal after each layer: of a plain ReLU network, and of a residual stream."""
    depth, width = 48, 512
    batch = torch.randn(256, width, generator=generator_for("batch"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.3), constrained_layout=True)
    plain = {
        "kaiming_normal (relu)": ({"scheme": "kaiming_normal", "nonlinearity": "relu"}, "#2f6db3", 2),
        "orthogonal (gain √2)": ({"scheme": "orthogonal", "gain": math.sqrt(2)}, "#4f9d5d", 11),
        "lsuv": ("lsuv", "#8a4fa8", -9),
        "xavier, lecun": ("xavier_normal", "#e08a2e", 0),
        "normal, std 0.02": ({"scheme": "normal", "std": 0.02}, "#b3413a", 6),
    }
    for label, (written, colour, shift) in plain.items():
        module = network(written, depth, width, label)
        if written == "lsuv":
            lsuv(module, batch)
        line(left, relu_signal(module, batch), colour, label, shift)
    left.set(yscale="log", ylim=(FLOOR, 30), xlabel="layer", title="plain ReLU network: RMS of the signal")
    streams = {
        "normal, std 0.02": ({"scheme": "normal", "std": 0.02}, "#b3413a", 0),
        "xavier_uniform": ("xavier_uniform", "#e08a2e", 0),
        "depth_scaled": ({"scheme": "depth_scaled", "std": 0.02}, "#2f6db3", 6),
        "zeros": ("zeros", "#4f9d5d", -4),
    }
    for label, (written, colour, shift) in streams.items():
        line(right, residual_signal(written, depth, width, batch, label), colour, label, shift)
    right.set(xlabel="layer", ylim=(0.6, None), title="residual stream: RMS, by the scheme of what writes to it")
    for axes in (left, right):
        axes.set_xlim(0, depth * 1.36)
        axes.set_xticks(range(0, depth + 1, 12))
        axes.title.set(fontsize=9.5, color=INK)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    save(figure, folder / "signal.svg")


def relu_signal(module: torch.nn.Sequential, batch: torch.Tensor) -> list[float]:
    """RMS of the input and of what each layer puts out."""
    found, value = [1.0], batch
    with torch.no_grad():
        for layer in module:
            value = layer(value)
            if isinstance(layer, torch.nn.Linear):
                found.append(float(value.square().mean().sqrt()))
    return found


def residual_signal(written: object, depth: int, width: int, batch: torch.Tensor, name: str) -> list[float]:
    """Two branches a layer, each from a normalised stream through a wider hidden layer, as in a transformer."""
    found, stream = [1.0], batch / batch.square().mean().sqrt()
    around = ModelFacts(layers=depth, width=width)
    for index in range(2 * depth):
        up = sampled("lecun_normal", (4 * width, width), f"{name}.{index}.up", around)
        down = sampled(written, (width, 4 * width), f"{name}.{index}.down", around)
        normed = stream / stream.square().mean(-1, keepdim=True).sqrt()
        stream = stream + torch.nn.functional.gelu(normed @ up.T) @ down.T
        if index % 2:
            found.append(float(stream.square().mean().sqrt()))
    return found


def line(axes: Axes, values: list[float], colour: str, label: str, shift: int) -> None:
    """A line with its name at its end, ``shift`` points higher."""
    axes.plot(range(len(values)), values, color=colour, linewidth=1.6)
    last = max(index for index, value in enumerate(values) if value > FLOOR)
    end = (last, values[last])
    axes.annotate(
        label,
        end,
        xytext=(5, shift),
        textcoords="offset points",
        color=colour,
        fontsize=8,
        va="center",
        annotation_clip=False,
    )


def prepare() -> Path:
    """Set the style of all figures; return the folder that the command line names, by default docs/img."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "img"
    folder.mkdir(parents=True, exist_ok=True)
    style()
    return folder


def style() -> None:
    """Set the style of all figures."""
    mpl.rcParams.update({
        "svg.fonttype": "none", "svg.hashsalt": "graftkit", "font.family": "sans-serif", "font.size": 8.5, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "figure.facecolor": "white", "savefig.bbox": "tight", "savefig.pad_inches": 0.04,
    })  # fmt: skip


def save(figure: Figure, path: Path) -> None:
    """Write and close a figure."""
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    """Draw everything."""
    folder = prepare()
    plot_spectra(folder)
    plot_signal(folder)


if __name__ == "__main__":
    main()
