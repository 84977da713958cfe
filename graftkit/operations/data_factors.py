"""Factors of a LoRA that start from what examples give: activations (EVA, CorDA) or gradients (LoRA-GA), made by peft."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftkit.architecture.injection import NAME
from graftkit.architecture.skeleton import one_line
from graftkit.architecture.tuner import silent
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import read_texts
from graftkit.checkpoint.reading import TAGS, read_tensor
from graftkit.errors import RecipeError, printable
from graftkit.initializers.low_rank import Factors
from graftkit.initializers.seeding import seed_of
from graftkit.operations.adapter_base import Base
from graftkit.operations.head_model import loaded
from graftkit.recipe.add_lora import DATA_CONFIGS, AddLora
from graftkit.verification.heads.texts import longest, write_tokenizer

#: The part of LoraConfig that factors depend on.
FIELDS = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")

#: How often EVA may go through the examples before it counts as one that does not converge.
PASSES = 100

Step = Callable[[float], None]


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

    def of(self, module: str) -> Factors:
        """A and B of ``module``, in float32."""
        if not self._found:
            self.run(lambda _: None)
        return self._found[module]

    def run(self, step: Step) -> None:
        """Run the examples through the model and let peft make every factor; ``step`` takes the share done.

        Raises:
            RecipeError: the examples are too few, or peft refuses.
        """
        import torch
        from transformers import AutoTokenizer

        state = {name: read_tensor(tensor) for name, tensor in self.checkpoint.tensors.items()}
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="graftkit-"))
            write_tokenizer(self.checkpoint, Path(folder))
            model = stack.enter_context(loaded(self.base(), state, TAGS[self.base.dtype]))
            stack.enter_context(silent())
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            torch.manual_seed(seed_of(*self.seed, self.kind))
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder)
                adapted = _MAKERS[self.kind](model, self._config(), _Texts(self.path, model, tokenizer, step))
            except RecipeError:
                raise
            except Exception as error:  # peft raises whatever it runs into
                raise self._refused(f"peft refuses: {one_line(error)}") from error
            self._found = {module: _factors(adapted, module) for module in self.modules}
        step(1.0)

    def _config(self) -> Any:
        from peft import LoraConfig
        from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig

        classes = {"eva": EvaConfig, "corda": CordaConfig, "lora_ga": LoraGAConfig}
        written = self.spec.plain_fields()
        fields = {name: written[name] for name in FIELDS if name in written}
        settings = {DATA_CONFIGS[self.kind]: classes[self.kind](**self.settings)}
        return LoraConfig(**fields, **settings, init_lora_weights=self.kind, target_modules=list(self.modules))

    def _refused(self, why: str) -> RecipeError:
        return RecipeError(f"operations: add_lora: init_lora_weights: {self.kind}: {why}")


@dataclass
class _Texts:
    """The texts as ids, streamed from the file; each is one batch, or several make one of ``least`` tokens or more."""

    path: Path
    model: Any
    tokenizer: Any
    step: Step
    least: int = 0

    def __len__(self) -> int:
        return 1  # peft only asks whether there are none

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches padded on the right.

        Raises:
            RecipeError: all texts together have fewer tokens than a batch needs.
        """
        held: list[Any] = []
        ready: list[Any] = []
        for ids in self.ids():
            held.append(ids)
            if sum(map(len, held)) >= self.least:
                if ready:
                    yield self._batch(ready)
                ready, held = held, []
        if not ready:
            raise RecipeError(
                f"operations: add_lora: examples: {printable(self.path)} has {sum(map(len, held))} tokens, and"
                f" {self.least} are needed"
            )
        yield self._batch([*ready, *held])

    def ids(self) -> Iterator[Any]:
        """The ids of each text, cut to what the model takes, ``(length,)``."""
        length = longest(self.model, self.tokenizer, None)
        for text in read_texts(self.path):
            found = self.tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"][0]
            if len(found) > 1:
                yield found

    def _batch(self, texts: list[Any]) -> dict[str, Any]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        mask = [torch.ones_like(ids) for ids in texts]
        return {
            "input_ids": pad_sequence(texts, batch_first=True),
            "attention_mask": pad_sequence(mask, batch_first=True),
        }


def _eva(model: Any, config: Any, texts: _Texts) -> Any:
    """A from the principal components of each layer's input (Paischer 2024, arXiv 2410.07170); B is zero."""
    from peft import get_peft_model, initialize_lora_eva_weights

    texts.least = 2 * max([config.r, *config.rank_pattern.values()])
    adapted = get_peft_model(model, config, adapter_name=NAME)
    count = sum(1 for _ in texts)
    passes = 0

    def forward(module: Any, inputs: dict[str, Any]) -> None:
        nonlocal passes
        passes += 1
        if passes > PASSES * count:
            raise RecipeError(f"operations: add_lora: init_lora_weights: eva: has not converged after {PASSES} passes")
        module(**inputs)

    initialize_lora_eva_weights(adapted, texts, forward_fn=forward, adapter_name=NAME, show_progress_bar=False)
    return adapted


def _corda(model: Any, config: Any, texts: _Texts) -> Any:
    """Both factors from the weight times the covariance of its input (Yang 2024, arXiv 2406.05223)."""
    import torch
    from peft import get_peft_model
    from peft.tuners.lora.corda import preprocess_corda

    def run() -> None:
        for ids in texts.ids():
            with torch.no_grad():
                model(input_ids=ids[None])

    preprocess_corda(model, config, run_model=run)
    return get_peft_model(model, config, adapter_name=NAME)


def _lora_ga(model: Any, config: Any, texts: _Texts) -> Any:
    """Both factors from the singular vectors of the loss's gradient (Wang 2024, arXiv 2407.05000)."""
    from peft import get_peft_model
    from peft.tuners.lora.loraga import preprocess_loraga

    def run() -> None:
        for ids in texts.ids():
            model(input_ids=ids[None], labels=ids[None]).loss.backward()

    preprocess_loraga(model, config, run)
    return get_peft_model(model, config, adapter_name=NAME)


_MAKERS: dict[str, Callable[[Any, Any, _Texts], Any]] = {"eva": _eva, "corda": _corda, "lora_ga": _lora_ga}


def _factors(adapted: Any, module: str) -> Factors:
    layer = adapted.get_base_model().get_submodule(module)
    return tuple(part[NAME].weight.detach().float().clone() for part in (layer.lora_A, layer.lora_B))
