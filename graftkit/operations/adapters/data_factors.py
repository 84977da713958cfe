"""Factors of a LoRA that start from what examples give: activations (EVA, CorDA) or gradients (LoRA-GA), made by peft."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.parts import NAME
from graftkit.architecture.peft.tuner import silent
from graftkit.architecture.skeleton import one_line
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import read_texts
from graftkit.checkpoint.reading import TAGS, read_tensor
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.initializers.low_rank import Factors
from graftkit.initializers.seeding import seed_of
from graftkit.operations.adapters.base import Base
from graftkit.operations.adapters.texts_to_factors import MAKERS, Texts, unfit
from graftkit.operations.heads.model import loaded_model
from graftkit.recipe.add_lora import DATA_CONFIGS, AddLora
from graftkit.running.texts import load_tokenizer, write_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The part of LoraConfig that factors depend on.
FIELDS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")


@dataclass
class DataFactors:
    """Runs the model on a file of texts once, and keeps A and B of every module in ``modules``."""

    spec: AddLora
    checkpoint: Checkpoint
    base: Base
    modules: tuple[str, ...]
    seed: tuple[int, int]
    _found: dict[str, Factors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look whether the examples can be used.

        Raises:
            RecipeError: the file holds no text or cannot be read, or the class or a setting does not suit the kind.
        """
        if next(read_texts(self.path), None) is None:
            raise self._refused(f"{printable(self.path)} holds no text")
        config = self.base().model.config
        if config.is_encoder_decoder:
            raise self._refused("texts are run through one stack, and this is an encoder-decoder; pissa needs no texts")
        if self.kind == "lora_ga" and not self.base().architecture.endswith(("ForCausalLM", "LMHeadModel")):
            raise self._refused("needs the loss of a causal language model; pissa needs no loss")
        if files := {"cache_file", "covariance_file"} & self.settings.keys():
            raise self._refused(f"{min(files)} would be a pickle; the examples are run anew")
        if self.settings.get("rho", 1) != 1:
            raise self._refused("rho deals out ranks by the examples, which no plan can know; rho 1 keeps them")
        if self.kind == "eva" and self.spec.rank_pattern:
            raise self._refused(
                "deals ranks out among layers with the same input, which takes one rank; drop rank_pattern"
            )
        try:
            self._config()
        except Exception as error:  # peft's config classes check their fields with TypeError and ValueError
            raise self._refused(f"peft refuses: {one_line(error)}") from error

    @property
    def kind(self) -> str:
        """eva, corda or lora_ga."""
        return str(self.spec.init_lora_weights)

    @property
    def path(self) -> Path:
        """The file of the texts."""
        return Path(str(self.spec.examples))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The fields of peft's config class for the kind."""
        given: Any = self.spec.config.get(DATA_CONFIGS[self.kind]) or {}
        return {"rho": 1.0, **given} if self.kind == "eva" else dict(given)

    def factors_of(self, module: str) -> Factors:
        """A and B of ``module``, in float32."""
        if not self._found:
            self.run(lambda _: None)
        return self._found[module]

    def run(self, step: Callable[[float], None]) -> None:
        """Run the examples through the model and let peft make every factor; ``step`` takes the share done.

        Raises:
            RecipeError: the examples are too few, or peft refuses.
        """
        import torch

        state = {name: read_tensor(tensor) for name, tensor in self.checkpoint.tensors.items()}
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="graftkit-"))
            write_tokenizer(self.checkpoint, Path(folder))
            model = stack.enter_context(loaded_model(self.base(), state, TAGS[self.base.dtype]))
            stack.enter_context(silent())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            torch.manual_seed(seed_of(*self.seed, self.kind))
            texts = self._texts(model, folder)
            try:
                adapted = MAKERS[self.kind](model, self._config(), texts)
            except RecipeError:
                raise
            except Exception as error:  # peft raises whatever it runs into
                raise self._refused(f"peft refuses: {one_line(error)}") from error
            self._found = {module: _factors(adapted, module) for module in self.modules}
        step(1.0)

    def _texts(self, model: PreTrainedModel, folder: str) -> Texts:
        """The texts as the model takes them, by the tokenizer in ``folder``.

        Raises:
            RecipeError: there is no tokenizer, or texts give a module nothing to start from.
        """
        try:
            tokenizer = load_tokenizer(Path(folder))
        except InputRejected as error:
            raise self._refused(f"the base has no tokenizer that loads: {error}") from error
        texts = Texts(self.path, model, tokenizer)
        if odd := unfit(model, self.modules, next(iter(texts.ids()), None)):
            raise self._refused(odd)
        return texts

    def _config(self) -> Any:
        from peft import LoraConfig
        from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig

        classes = {"eva": EvaConfig, "corda": CordaConfig, "lora_ga": LoraGAConfig}
        written = self.spec.plain_fields()
        fields = {name: written[name] for name in FIELDS if name in written}
        settings = {DATA_CONFIGS[self.kind]: classes[self.kind](**self.settings)}
        return LoraConfig(**fields, **settings, init_lora_weights=self.kind, target_modules=list(self.modules))

    def _refused(self, why: str) -> RecipeError:
        return RecipeError(f"{self.kind}: {why}", field="init_lora_weights")


def _factors(adapted: Any, module: str) -> Factors:
    layer = adapted.get_base_model().get_submodule(module)
    return tuple(part[NAME].weight.detach().float().clone() for part in (layer.lora_A, layer.lora_B))
