"""A model run on texts by two tokenizers: by the old one with its own input rows, by the new one with rows that are given for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from graftkit.architecture.capabilities import parameters_of
from graftkit.running.aligned import Aligned, last_states, relative_distance

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class GivenRows:
    """``model`` with further input rows: ``rows``, float32 ``(k, d)``, belong to the new ids ``ids``, other new ids have old rows.

    ``origins`` says which. The model is changed in one thing: its padding row is a row as any other.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Sequence[int], rows: Tensor, origins: Callable[[int], int | None]
    ) -> None:
        self.body: Any = model.base_model
        self.table: Any = model.get_input_embeddings()
        self.table.padding_idx = None
        self.rows, self.places, self.origins = rows, {index: place for place, index in enumerate(ids)}, origins

    def states_before(self, batch: Sequence[Aligned]) -> Tensor:
        """Last hidden states at the old places of a batch, one behind the other. *Shape:* ``(places, d)``."""
        import torch

        with torch.no_grad():
            embedded = [self.table(torch.tensor([text.old]))[0] for text in batch]
            return self._states(embedded, [[old for old, _ in text.places] for text in batch])

    def states_after(self, batch: Sequence[Aligned]) -> tuple[Tensor, Tensor, Tensor]:
        """The same at the new places; beside them the places of the given rows that stand in the batch, and these rows as a leaf.

        *Shapes:* ``(places, d)``, ``(n,)``, ``(n, d)``.
        """
        import torch

        used = sorted({self.places[index] for text in batch for index in text.new if index in self.places})
        leaf = self.rows[used].requires_grad_()
        local = {place: number for number, place in enumerate(used)}
        embedded = [self._embed(text.new, leaf, local) for text in batch]
        return self._states(embedded, [[new for _, new in text.places] for text in batch]), torch.tensor(used), leaf

    def distance(self, batch: Sequence[Aligned]) -> float:
        """How far the states at the new places are from those at the old ones, as a share of the size of these."""
        import torch

        with torch.no_grad():
            return relative_distance((self.states_after([text])[0], self.states_before([text])) for text in batch)

    def _embed(self, ids: Sequence[int], leaf: Tensor, local: dict[int, int]) -> Tensor:
        """The embedded ids, as the class embeds: some multiply. *Shape:* ``(len(ids), d)``."""
        import torch

        places = [self.places.get(index) for index in ids]
        old = [0 if place is not None else self._origin(index) for index, place in zip(ids, places, strict=True)]
        kept = self.table(torch.tensor([old]))[0]
        given = torch.tensor([[0 if place is None else local[place] for place in places]])
        fresh = torch.func.functional_call(self.table, {"weight": leaf}, (given,))[0] if len(leaf) else kept
        return torch.where(torch.tensor([place is not None for place in places])[:, None], fresh, kept)

    def _origin(self, index: int) -> int:
        found = self.origins(index)
        if found is None:
            raise ValueError(f"id {index} has neither an old row nor one that is given")
        return found

    def _states(self, embedded: Sequence[Tensor], places: Sequence[Sequence[int]]) -> Tensor:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        inputs = {"inputs_embeds": pad_sequence(list(embedded), batch_first=True)}
        if "attention_mask" in parameters_of(self.body):
            inputs["attention_mask"] = pad_sequence([torch.ones(len(one)).long() for one in embedded], batch_first=True)
        states = last_states(self.body(**inputs))
        return torch.cat([states[number, list(wanted)] for number, wanted in enumerate(places)])
