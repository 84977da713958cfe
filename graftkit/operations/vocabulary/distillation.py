"""Input rows fitted to texts: what the model makes of a text by its new tokens shall be what it made of it by its old ones."""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftkit.architecture.accounting import account
from graftkit.architecture.capabilities import parameters_of
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import read_texts
from graftkit.checkpoint.reading import read_tensor
from graftkit.errors import InputRejected, RecipeError, plural, printable
from graftkit.initializers.one_thread import OneThread
from graftkit.initializers.row_descent import RowDescent
from graftkit.initializers.seeding import generator_for
from graftkit.operations.base import check_plain_weights
from graftkit.operations.heads.model import loaded_model
from graftkit.operations.vocabulary.tables import other_sizes
from graftkit.recipe.schemes import RATE, Distill
from graftkit.running.aligned import Aligned, align, cut_texts
from graftkit.running.forward import largest_position
from graftkit.running.given_rows import GivenRows
from graftkit.running.loaded_tokenizer import LoadedTokenizer
from graftkit.running.runnable import too_large
from graftkit.running.texts import write_tokenizer
from graftkit.verification.tokens.distilled import DistilledCheck, Expected, Fitted

if TYPE_CHECKING:
    from torch import Tensor

#: Share of the snippets that nothing is fitted to, and how many are measured on, at most.
HELD_OUT, MEASURED = 0.1, 64

Step = Callable[[float], None]

#: A part of a text, and how it is split.
Snippet = tuple[str, Aligned]


@dataclass
class Distillation:
    """Fits rows of ``after``, which has another tokenizer than ``before`` and the same body, to texts (arXiv 2505.20133).

    Minimised is the squared distance of last hidden states, at the places from a snippet's first new token on at which both splits end
    with a new token or with the same one.
    The model is frozen: nothing but these rows changes. ``origins`` gives the row of ``before`` of each id that has one.
    """

    spec: Distill
    before: Checkpoint
    after: Checkpoint
    vocabulary: Vocabulary
    origins: Callable[[int], int | None]
    seed: tuple[int, int]
    _expected: list[Expected] = field(default_factory=list)
    _figures: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Look whether class, weights and texts can be used.

        Raises:
            InputRejected: the checkpoint cannot be run with rows that are given to it.
            RecipeError: the texts cannot be read, or are too few.
        """
        check_plain_weights(self.before, "distill")
        if why := self._cannot_run():
            raise InputRejected(
                f"{self.before.name}: distill: {why}; subword_mean starts from the same rows and runs nothing"
            )
        try:
            first = next(read_texts(Path(self.spec.texts)), None)
        except RecipeError as error:
            raise RecipeError(error.problems, field="init.texts") from error
        if first is None:
            raise RecipeError(f"{printable(self.spec.texts)}: holds no text", field="init.texts")

    def _cannot_run(self) -> str:
        """Why the class cannot be run on rows that are given to it; empty where it can."""
        skeleton = account(self.before).skeleton
        model = skeleton.model
        if model.config.is_encoder_decoder:
            return f"texts are run through one stack, and {skeleton.architecture} is an encoder-decoder"
        if self.vocabulary.of_role("further_input") or other_sizes(self.before, self.vocabulary):
            return f"{skeleton.architecture} has more than one table of input rows"
        if "inputs_embeds" not in parameters_of(model.base_model):
            return f"the forward of {type(model.base_model).__name__} takes no inputs_embeds"
        return too_large(4 * sum(math.prod(tensor.shape) for tensor in self.before.tensors.values()))

    def fit(self, made: Tensor, ids: Sequence[int], places: Sequence[int], step: Step) -> Tensor:
        """Fit the rows at ``places`` among those ``made`` for ``ids``, and measure. *Shapes:* both ``(len(ids), d)``.

        The computation is one thread's, so that its bits do not depend on the number of processors.

        Raises:
            RecipeError: no text has a token whose row is fitted, or what is fitted is no better on held-out texts.
        """
        import torch

        with OneThread(), self._models() as (model, old, new):
            table = GivenRows(model, ids, made.float(), self.origins)
            fresh = frozenset(ids[place] for place in places)
            found = self._snippets(old, new, fresh)
            held_out, learning = self._deal(found)
            snippets = [snippet for _, snippet in learning]
            parts = {"fitted": snippets[:MEASURED], "held_out": [snippet for _, snippet in held_out]}
            before = {name: table.distance(part) for name, part in parts.items()}
            rate = self._descend(table, snippets, torch.tensor(sorted(places)), step)
            after = {name: table.distance(part) for name, part in parts.items()}
            self._expected = [_expected(table, text, snippet) for text, snippet in held_out]
        seen = fresh.intersection(itertools.chain.from_iterable(snippet.new for snippet in snippets))
        self._figures = {
            "tokens": len(fresh), "not_seen": len(fresh - seen), "snippets": len(snippets), "learning_rate": rate,
            "held_out_snippets": len(held_out), "distance_before": before, "distance_after": after,
        }  # fmt: skip
        self._check_better(before["held_out"], after["held_out"])
        fitted = made.clone()
        fitted[list(places)] = table.rows[list(places)].to(made.dtype)
        return fitted

    def _check_better(self, before: float, after: float) -> None:
        if not after < before:
            raise RecipeError(
                f"on held-out texts hidden states are {after:.4f} of their size away from those behind old tokens, and were"
                f" {before:.4f} with subword means; give more texts or a lower learning_rate than {self.figures['learning_rate']:.3g}",
                field="init",
            )

    @property
    def figures(self) -> Mapping[str, Any]:
        """What was fitted to, and the distances of hidden states from those behind old tokens, before and after."""
        return self._figures

    def check(self) -> DistilledCheck:
        """The held-out texts once more, on what was written."""
        return DistilledCheck(lambda: Fitted(self._expected, self._figures["distance_before"]["held_out"]))

    @contextlib.contextmanager
    def _models(self) -> Iterator[tuple[Any, LoadedTokenizer, LoadedTokenizer]]:
        """The model in float32, and the tokenizer before and after."""
        state = {name: read_tensor(tensor) for name, tensor in self.before.tensors.items()}
        with tempfile.TemporaryDirectory(prefix="graftkit-") as folder, contextlib.ExitStack() as stack:
            tokenizers = []
            for name, checkpoint in (("before", self.before), ("after", self.after)):
                write_tokenizer(checkpoint, Path(folder, name))
                tokenizers.append(LoadedTokenizer.of(Path(folder, name)))
            model = stack.enter_context(loaded_model(account(self.before).skeleton, state, "F32"))
            yield model, tokenizers[0], tokenizers[1]

    def _align(self, old: LoadedTokenizer, new: LoadedTokenizer, text: str, fresh: frozenset[int]) -> Aligned | None:
        """The text split by both; None where it shows nothing of the fresh ids, is too long, or has an old token without a row."""
        found = align(old, new, text, fresh, self.origins)
        if found is None or max(found.old) >= self.vocabulary.rows:
            return None
        return found if max(len(found.old), len(found.new)) <= self._positions else None

    @cached_property
    def _positions(self) -> int:
        """The most tokens of a snippet: what the model has positions for, where it says."""
        return largest_position(account(self.before).skeleton.model) or 4 * self.spec.snippet_len

    def _snippets(self, old: LoadedTokenizer, new: LoadedTokenizer, fresh: frozenset[int]) -> list[Snippet]:
        """Snippets and how they are split, until each fresh id stands in as many as are wanted."""
        length = min(self.spec.snippet_len, self._positions // 2)
        seen: Counter[int] = Counter()
        found = []
        for text in cut_texts(old, read_texts(Path(self.spec.texts)), length):
            snippet = self._align(old, new, text, fresh)
            here = fresh.intersection(snippet.new) if snippet else frozenset()
            if snippet and any(seen[index] < self.spec.snippets_per_token for index in here):
                found.append((text, snippet))
                seen.update(here)
                if len(seen) == len(fresh) and min(seen.values()) >= self.spec.snippets_per_token:
                    break
        return found

    def _deal(self, found: list[Snippet]) -> tuple[list[Snippet], list[Snippet]]:
        """What is measured on, and what is fitted to; the seed says which.

        Raises:
            RecipeError: there are fewer than two.
        """
        import torch

        if len(found) < 2:
            raise RecipeError(
                f"{printable(self.spec.texts)}: has {plural(len(found), 'snippet')} with a token whose row is fitted; two are needed,"
                " one to fit to and one to measure on",
                field="init.texts",
            )
        order = torch.randperm(len(found), generator=generator_for(*self.seed, "held out")).tolist()
        count = min(max(round(HELD_OUT * len(found)), 1), MEASURED)
        out = set(order[:count])
        dealt = [(place in out, one) for place, one in enumerate(found)]
        return [one for held, one in dealt if held], [one for held, one in dealt if not held]

    def _descend(self, table: GivenRows, snippets: Sequence[Aligned], free: Tensor, step: Step) -> float:
        """Go through the snippets in an order that the seed gives; steps shorten steadily from the rate that is returned to nothing."""
        import torch

        rate = self.spec.learning_rate or RATE * float(table.table.weight.square().mean().sqrt())
        descent = RowDescent(table.rows, rate)
        orders = (
            torch.randperm(len(snippets), generator=generator_for(*self.seed, "distill", epoch))
            for epoch in range(self.spec.epochs)
        )
        order = torch.cat(list(orders)).tolist()
        batches = [order[start : start + self.spec.batch_size] for start in range(0, len(order), self.spec.batch_size)]
        for number, batch in enumerate(batches):
            chosen = [snippets[place] for place in batch]
            after, used, leaf = table.states_after(chosen)
            loss = (after - table.states_before(chosen)).square().sum(1).mean()
            (gradient,) = torch.autograd.grad(loss, leaf)
            fitted = torch.isin(used, free)
            descent.step(used[fitted], gradient[fitted], 1 - number / len(batches))
            step((number + 1) / len(batches))
        return rate


def _expected(table: GivenRows, text: str, snippet: Aligned) -> Expected:
    return Expected(text, snippet.new, tuple(new for _, new in snippet.places), table.states_before([snippet]))
