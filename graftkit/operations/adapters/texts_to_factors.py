"""peft's own ways from texts to the factors of a LoRA: EVA, CorDA and LoRA-GA, on a loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.peft.parts import NAME
from graftkit.checkpoint.examples import read_texts
from graftkit.errors import RecipeError, printable
from graftkit.running.texts import longest

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

#: How often EVA may go through the examples before it counts as one that does not converge.
PASSES = 100


@dataclass
class Texts:
    """The texts as ids, streamed from the file; each is one batch, or several make one of ``least`` tokens or more."""

    path: Path
    model: PreTrainedModel
    tokenizer: Any
    least: int = 0

    def __len__(self) -> int:
        return 1  # peft only asks whether there are none

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches padded on the right.

        Raises:
            RecipeError: all texts together have fewer tokens than a batch needs.
        """
        held: list[Tensor] = []
        ready: list[Tensor] = []
        for ids in self.ids():
            held.append(ids)
            if sum(map(len, held)) >= self.least:
                if ready:
                    yield self._batch(ready)
                ready, held = held, []
        if not ready:
            raise RecipeError(
                f"{printable(self.path)} has {sum(map(len, held))} tokens, and {self.least} are needed",
                field="examples",
            )
        yield self._batch([*ready, *held])

    def ids(self) -> Iterator[Tensor]:
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


def unfit(model: PreTrainedModel, modules: Sequence[str], ids: Tensor | None) -> str:
    """Why texts give a module nothing to start from, found on one text ``(length,)``; empty where they do for all."""
    import torch

    if ids is None:
        return "no text has two tokens or more"
    seen: dict[str, Any] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, given, _o, name=name: seen.update({name: given[0]}))
        for name in modules
    ]
    try:
        with torch.no_grad():
            model(input_ids=ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    for name in modules:
        if name not in seen:
            return f"texts do not run {printable(name)}; leave it out"
        if tuple(seen[name].shape[:-1]) != (1, len(ids)):
            return f"{printable(name)} is not given one vector for each token; leave it out"
    return ""


def _eva(model: PreTrainedModel, config: Any, texts: Texts) -> Any:
    """A from the principal components of each layer's input (Paischer 2024, arXiv 2410.07170); B is zero."""
    from peft import get_peft_model, initialize_lora_eva_weights

    texts.least = 2 * max([config.r, *config.rank_pattern.values()])
    adapted = get_peft_model(model, config, adapter_name=NAME)
    count = sum(1 for _ in texts)
    passes = 0

    def forward(module: nn.Module, inputs: dict[str, Any]) -> None:
        nonlocal passes
        passes += 1
        if passes > PASSES * count:
            raise RecipeError(f"eva: has not converged after {PASSES} passes", field="init_lora_weights")
        module(**inputs)

    initialize_lora_eva_weights(adapted, texts, forward_fn=forward, adapter_name=NAME, show_progress_bar=False)
    return adapted


def _corda(model: PreTrainedModel, config: Any, texts: Texts) -> Any:
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


def _lora_ga(model: PreTrainedModel, config: Any, texts: Texts) -> Any:
    """Both factors from the singular vectors of the loss's gradient (Wang 2024, arXiv 2407.05000)."""
    from peft import get_peft_model
    from peft.tuners.lora.loraga import preprocess_loraga

    def run() -> None:
        for ids in texts.ids():
            model(input_ids=ids[None], labels=ids[None]).loss.backward()

    preprocess_loraga(model, config, run)
    return get_peft_model(model, config, adapter_name=NAME)


#: A model, the config of its adapter and the texts -> the peft model with its factors made.
MAKERS: dict[str, Callable[[Any, Any, Texts], Any]] = {"eva": _eva, "corda": _corda, "lora_ga": _lora_ga}
