"""Layers of a new head scaled on texts until their outputs have variance one."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftkit.architecture.head import Head
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.errors import RecipeError
from graftkit.initializers.lsuv import layers_of, lsuv
from graftkit.initializers.seeding import seed_of
from graftkit.operations.heads.fit import Step
from graftkit.operations.heads.model import loaded_model
from graftkit.recipe import ReplaceHead
from graftkit.recipe.weight_schemes import Lsuv
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.running.texts import known_inputs, load_tokenizer, longest, write_tokenizer
from graftkit.verification.heads.media import takes_text

#: Texts that the variance is measured on, and tokens of each.
TEXTS, LENGTH = PROBE_TEXTS[:16], 48


@dataclasses.dataclass
class UnitVariance:
    """Scales what the recipe gives to ``lsuv``: the label projection, the layers before it, or both."""

    spec: ReplaceHead
    head: Head
    seed: tuple[int, int]
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the layers.

        Raises:
            RecipeError: the class is not fed texts, or no layer of its head is new.
        """
        self.names = tuple(self._names())
        if not takes_text(self.head.skeleton.model):
            raise RecipeError(f"lsuv is measured on texts, and {self.head.skeleton.architecture} takes none")
        if not self.names:
            raise RecipeError(f"lsuv: the head of {self.head.skeleton.architecture} has no such new layer")

    @staticmethod
    def wanted(spec: ReplaceHead) -> bool:
        """Whether the recipe asks for it."""
        return isinstance(spec.init, Lsuv) or isinstance(spec.inner_init, Lsuv)

    def run(self, result: Checkpoint, dtype: str, step: Step) -> dict[str, Any]:
        """Scale in float32. Returns the weights by name in memory.

        Raises:
            RecipeError: the outputs of a layer do not vary, or do not settle.
        """
        import torch

        made = {tensor.name for tensor in self.head.tensors if tensor.part != "inner"} | set(self.names)
        state = {
            key: torch.zeros(lazy.shape, dtype=torch_dtype(lazy.dtype)) if key in made else read_tensor(lazy)
            for key, lazy in result.tensors.items()
        }
        with (
            tempfile.TemporaryDirectory(prefix="graftkit-") as folder,
            loaded_model(self.head.skeleton, state, "F32") as model,
        ):
            write_tokenizer(result, Path(folder))
            tokenizer = load_tokenizer(Path(folder))
            length = min(LENGTH, longest(model, tokenizer, None))
            encoded = [tokenizer(text, truncation=True, max_length=length, return_tensors="pt") for text in TEXTS]
            batches = [self._inputs(known_inputs(model, one)) for one in encoded]
            layers = [name.removesuffix(".weight") for name in self.names]
            try:
                found = lsuv(model, batches, only=layers, seed=seed_of(*self.seed, "lsuv"))
            except ValueError as error:
                raise RecipeError(f"lsuv: {error}") from error
            parameters = dict(model.named_parameters())
            weights = {name: parameters[name].detach().to(torch_dtype(dtype)) for name in self.names}
        step(1.0)
        self.figures = {"texts": len(TEXTS), "layers": {name: dataclasses.asdict(one) for name, one in found.items()}}
        return weights

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: v[:, None] for k, v in inputs.items()} if self.spec.task == "multiple_choice" else inputs

    def _names(self) -> Iterator[str]:
        weights = {f"{name}.weight" for name, _ in layers_of(self.head.skeleton.model)}
        for part, scheme in (("projection", self.spec.init), ("inner", self.spec.inner_init)):
            if isinstance(scheme, Lsuv):
                yield from (
                    tensor.name for tensor in self.head.tensors if tensor.part == part and tensor.name in weights
                )
