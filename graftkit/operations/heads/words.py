"""A label projection made of the language-model head's rows: the logit of a label is the mean of those of its words."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from graftkit.architecture.accounting import Structure
from graftkit.architecture.embeddings import OUTPUT
from graftkit.architecture.head import MAPPINGS, Head
from graftkit.architecture.parameters import text_value
from graftkit.architecture.skeleton import Skeleton, build_skeleton
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import read_tensor, torch_dtype
from graftkit.checkpoint.tokenizer import read_tokenizer
from graftkit.errors import InputRejected, RecipeError, printable
from graftkit.operations.heads.fit import Step
from graftkit.operations.heads.model import feature_model, loaded_model, projection_of
from graftkit.recipe import ReplaceHead
from graftkit.recipe.head_schemes import Verbalizer
from graftkit.running.probe_texts import PROBE_TEXTS
from graftkit.running.texts import known_inputs, longest

if TYPE_CHECKING:
    from torch import Tensor

#: Texts on which the new logits are compared with the language model's, and tokens of each.
TEXTS, LENGTH = PROBE_TEXTS[:8], 48

#: Largest difference in float32, relative to the root mean square of the logits.
SLACK = 1e-4

WHERE = "verbalizer"

#: Values of a config that bend the logits behind the rows.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "softcap")


@dataclass
class WordRows:
    """Finds the words and the language-model head when planning, and measures and makes the rows in :meth:`run`.

    The scale between rows and logits (that of Granite, of Cohere, of tied T5) is measured, not read: the logits of the
    classifier must be those of the language model at the position that the head pools at, times one number.
    """

    spec: ReplaceHead
    head: Head
    checkpoint: Checkpoint
    structure: Structure
    figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look for whatever stands in the way.

        Raises:
            RecipeError: a word is no single token.
            InputRejected: there is no language-model head, or the new head cannot do what that does before its rows.
        """
        projection_of(self.head)
        words = self.spec.init.words if isinstance(self.spec.init, Verbalizer) else {}
        self.ids = word_ids({label: words[label] for label in self.spec.labels}, self.checkpoint)
        self.language_model = find_language_model(self.checkpoint, self.structure)
        self.copied = self._transform()
        cap = next((name for name in CAPS if text_value(self.language_model, name) is not None), None)
        if cap is not None:
            raise InputRejected(
                f"{WHERE}: {self._names()}: the language model caps its logits ({cap} of config.json), and a classifier"
                " cannot"
            )

    def copies(self, dtype: str) -> dict[str, Any]:
        """The language model's layers before its rows, which the head has under the same names."""
        return {
            name: read_tensor(self.checkpoint.tensors[disk]).to(torch_dtype(dtype))
            for name, disk in self.copied.items()
        }

    def run(self, result: Checkpoint, dtype: str, step: Step) -> dict[str, Any]:
        """Make the projection and its bias. Returns tensors by name in memory.

        Raises:
            InputRejected: the classifier's logits would not be the language model's.
        """
        import torch

        with feature_model(result, self.head, dtype="F32") as (model, tokenizer):
            length = min(LENGTH, longest(model, tokenizer, None))
            inputs = [tokenizer(t, truncation=True, max_length=length, return_tensors="pt") for t in TEXTS]
            with torch.inference_mode():
                features = [model(**known_inputs(model, one)).logits[0].double() for one in inputs]
        step(0.5)
        state = {name: read_tensor(lazy) for name, lazy in self.checkpoint.tensors.items()}
        with loaded_model(self.language_model, state, "F32") as model, torch.inference_mode():
            words = [torch.tensor(ids) for ids in self.ids]
            output = model.get_output_embeddings()
            rows = torch.stack([output.weight[ids].double().mean(0) for ids in words])
            bias = torch.zeros(len(words), dtype=torch.float64)
            if getattr(output, "bias", None) is not None:
                bias = torch.stack([output.bias[ids].double().mean() for ids in words])
            logits = (model(**known_inputs(model, one)).logits[0].double() for one in inputs)
            theirs = [torch.stack([one[:, ids].mean(-1) for ids in words], -1) for one in logits]
        step(1.0)
        ours = [one @ rows.T + bias for one in features]
        scale, place, difference = fit_scale(ours, theirs)
        if difference > SLACK:
            raise InputRejected(
                f"{WHERE}: {self._names()}: on probe texts the logits differ by {difference:.1g} of their size from the"
                " language model's, at every position and with any scale; the head pools otherwise, or the language"
                " model does something before or behind its rows that the head cannot hold"
            )
        self.figures = {
            "scheme": "verbalizer",
            "language_model": self.language_model.architecture,
            "words": dict(zip(self.spec.labels, self.ids, strict=True)),
            "logit_scale": scale,
            "position": place,
            "relative_difference": difference,
        }
        weight, intercept = self.head.tensors_of("projection"), self.head.tensors_of("projection_bias")
        if not intercept and bool(bias.any()):
            raise InputRejected(
                f"{WHERE}: {self._names()}: the words have a bias in the language-model head, and the label projection"
                f" {printable(weight[0].name)!r} has none"
            )
        found = {weight[0].name: (rows * scale).to(torch_dtype(dtype))}
        return found | ({intercept[0].name: (bias * scale).to(torch_dtype(dtype))} if intercept else {})

    def _names(self) -> str:
        return f"{self.language_model.architecture} to {self.head.skeleton.architecture}"

    def _transform(self) -> Mapping[str, str]:
        """The layers that the language model has before its rows, to copy: name in memory -> name on disk."""
        model = self.language_model
        outputs, inside = model.weight_names(OUTPUT), f"{model.model.base_model_prefix}."
        bias = (model.shapes[min(outputs)][0],)
        before = {
            name: shape
            for name, shape in model.shapes.items()
            if not name.startswith(inside) and name not in outputs and shape != bias
        }
        inner = {tensor.name: tensor.shape for tensor in self.head.tensors_of("inner")}
        if inner != before:
            theirs, ours = (", ".join(sorted(map(printable, names))) or "nothing" for names in (before, inner))
            raise InputRejected(
                f"{WHERE}: {self._names()}: before its rows the language model applies {theirs}; the head has {ours},"
                " which cannot hold that"
            )
        names = model.memory_names(self.checkpoint.tensors)
        return {name: disk for name in before for disk in names.on_disk(name)[:1]}


def word_ids(words: Mapping[str, Sequence[str]], checkpoint: Checkpoint) -> tuple[tuple[int, ...], ...]:
    """The token of each word of each label.

    Raises:
        RecipeError: a word is no token, or more than one.
    """
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)

    def token(label: str, word: str) -> int:
        pieces = tokenizer.encode(word)
        if len(pieces) == 1:
            return pieces[0]
        shown = "|".join(printable(tokenizer.token_of(piece)) for piece in pieces) or "nothing"
        spaced = len(tokenizer.encode(f" {word}")) == 1
        raise RecipeError(
            f"{printable(word)!r} is {len(pieces)} tokens, {shown};"
            f" {f'{printable(word)!r} with a space before is one' if spaced else 'choose another word'}",
            field=f"init.words.{printable(label)}",
        )

    return tuple(tuple(token(label, word) for word in group) for label, group in words.items())


def find_language_model(checkpoint: Checkpoint, structure: Structure) -> Skeleton:
    """The class whose output rows the checkpoint has: its own, else transformers' for its model type.

    Raises:
        InputRejected: there is none.
    """
    from transformers.models.auto import modeling_auto

    if structure.skeleton.embedding(OUTPUT) is not None:
        return structure.skeleton
    for task in ("causal_lm", "masked_lm"):
        name = getattr(modeling_auto, MAPPINGS[task]).get(checkpoint.config["model_type"])
        with contextlib.suppress(InputRejected):
            skeleton = build_skeleton(checkpoint.config, name) if isinstance(name, str) else None
            if skeleton and skeleton.embedding(OUTPUT) is not None and not skeleton.loading(checkpoint.tensors).missing:
                return skeleton
    raise InputRejected(
        f"{WHERE}: {checkpoint.name}: {structure.skeleton.architecture} has no language-model head to take rows from;"
        " start from the checkpoint that still has it"
    )


def fit_scale(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, str, float]:
    """``(scale, position, relative difference)`` that fit best: ``theirs ≈ scale · ours`` at one position of each text.

    *Shapes:* ours ``(labels,)``, or ``(tokens, labels)`` of a head that does not pool; theirs ``(tokens, labels)``.
    """
    import torch

    ways = {"last": [one[-1] for one in theirs], "first": [one[0] for one in theirs]}
    found = []
    for place, wanted in ({"every": theirs} if ours[0].ndim > 1 else ways).items():
        x, y = (torch.cat([one.flatten() for one in values]) for values in (ours, wanted))
        scale = _power_of_two(float(x @ y / x.square().sum().clamp(min=1e-300)))
        found.append((scale, place, float((y - scale * x).norm() / y.norm().clamp(min=1e-300))))
    return min(found, key=lambda item: item[2])


def _power_of_two(scale: float) -> float:
    """The power of two that a measured scale is within float32's error of, so that no bit of a row is lost; else the scale."""
    if scale <= 0:
        return scale
    near = 2.0 ** round(math.log2(scale))
    return near if math.isclose(scale, near, rel_tol=SLACK / 10) else scale
