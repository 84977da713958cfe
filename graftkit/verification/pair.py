"""Two checkpoints that are compared without a recipe: what each check between them asks of both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from graftkit.architecture.accounting import account
from graftkit.architecture.correspondence import IDENTITY, Correspondence
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.token_ids import renumbered
from graftkit.architecture.vocabulary import Vocabulary, vocabulary_of
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import TOKENIZER
from graftkit.checkpoint.tokenizer import NO_TOKENIZER, Renamed, TokenizerFiles, read_tokenizer
from graftkit.errors import InputRejected, few, plural
from graftkit.verification.accounted import Accounted
from graftkit.verification.documents import Allowed, check_documents
from graftkit.verification.kl_promise import KLPromise
from graftkit.verification.new_rows import check_new_biases, check_shares, likely_bound, wild_rows
from graftkit.verification.outputs import OutputsReport
from graftkit.verification.subject import DTYPE_FIELDS, NewTokens, is_longer, is_recast, places
from graftkit.verification.tensors import changed_tensors
from graftkit.verification.value_head import new_value_head_findings
from graftkit.verification.weights.ties import lost_ties


@dataclass(frozen=True, slots=True)
class Pair:
    """Two opened checkpoints: vocabularies, tokenizers, and what the report of the second excuses.

    Which rows are new is the report's to say where the first has as many rows and tokens as the report's source had; else the
    tokenizers say it.

    ``added`` is what the loader calls tensors that the report names and that the second's class leaves out.
    """

    old: Checkpoint
    new: Checkpoint
    vocabularies: tuple[Vocabulary, Vocabulary]
    tokenizers: tuple[TokenizerFiles, TokenizerFiles]
    correspondence: Correspondence
    report: Accounted | None = None
    added: frozenset[str] = frozenset()

    @classmethod
    def of(cls, old: Checkpoint, new: Checkpoint, report: Accounted | None) -> Pair:
        """Read what both have of a vocabulary.

        Raises:
            InputRejected: the second has fewer rows and no report, or tensors that its class alone does not know; one of them alone
                takes token ids; or its vocabulary cannot be told.
        """
        before, after = account(old), account(new)
        known = report.tensors if report else frozenset[str]()
        if lost := set(after.unknown) - set(before.unknown) - known:
            count = plural(len(lost), "tensor")
            raise InputRejected(
                f"{new.name}: {after.skeleton.architecture} has no place for {count} by its config: {few(lost)}"
            )
        vocabularies = vocabulary_of(old, before), vocabulary_of(new, after)
        rows = [vocabulary.rows for vocabulary in vocabularies]
        if bool(rows[0]) != bool(rows[1]):
            taking = (old, new) if rows[0] else (new, old)
            raise InputRejected(f"{taking[1].name}: takes no token ids, but {taking[0].name} does")
        if rows[1] < rows[0] and report is None:
            raise InputRejected(
                f"{new.name}: has {rows[1]} rows, fewer than the {rows[0]} of {old.name}, and no report says which of them"
            )
        bare = not rows[0] and not any("tokenizer.json" in checkpoint.documents for checkpoint in (old, new))
        first, second = (NO_TOKENIZER if bare else read_tokenizer(checkpoint.documents) for checkpoint in (old, new))
        tokenizers = first, second
        ids = _correspondence(rows[0], rows[1], *tokenizers)
        correspondence = report.correspondence if report else IDENTITY
        reported = correspondence.ids
        if reported is None or ([reported.source, reported.result], correspondence.live) != (rows, ids.live):
            correspondence = replace(correspondence, ids=ids.ids, live=ids.live)
        added = after.names_not_loaded(known - old.tensors.keys())
        return cls(old, new, vocabularies, tokenizers, correspondence, report, added)

    @property
    def accounted(self) -> Accounted:
        """How the second agrees with the report beside it; nothing is excused where there is none."""
        return self.report or Accounted(())

    @property
    def has_tokenizer(self) -> bool:
        """Whether they have a tokenizer at all; what takes no token ids needs none."""
        return self.tokenizers[0] is not NO_TOKENIZER

    @property
    def takes_ids(self) -> bool:
        """Whether both look token ids up in a table."""
        return bool(self.vocabularies[0].rows)

    @property
    def recast(self) -> bool:
        """Whether the second is in another dtype, and the report says that this was meant."""
        named = any(place.rpartition(".")[2] in DTYPE_FIELDS for _, place in self.accounted.values)
        return named and is_recast(self.old.config, self.new.config)

    def documents(self) -> Iterator[str]:
        """What config and generation config say otherwise, and no operation of the report changed."""
        allowed, ids = Allowed(self.correspondence, *self.tokenizers, self.accounted.values), self.correspondence.ids
        moved = {} if self.replaced or ids is None or ids.in_place else renumbered(self.old.documents, ids)
        return check_documents(self.old.with_documents(moved), self.new, allowed)

    def new_tokens(self) -> NewTokens | None:
        """How the tokenizer may have changed; a chat template may come where there was none, or where the report says so.

        None where there is none, and where the report says that it is another checkpoint's, whose files it vouches for.
        """
        if not self.has_tokenizer or self.replaced:
            return None
        second = self.tokenizers[1]
        named = ((second.token_of(index), index) for index in self._new_ids())
        ids = {token: index for token, index in named if token is not None}
        added = {entry.content for entry in second.added}
        vocabulary = second.document["model"]["vocab"]
        pieces = set(vocabulary) if isinstance(vocabulary, dict) else {piece for piece, _ in vocabulary}
        changed = any("chat_template" in document + place for document, place in self.accounted.values)
        return NewTokens(
            {token: index for token, index in ids.items() if token in added},
            frozenset(),
            changed or (not any(_chat_templates(self.old)) and any(_chat_templates(self.new))),
            ("tokenizer_config.json", "pad_token") in self.accounted.values,
            dict(self._renamed()),
            places(self.accounted.values),
            learned={token: index for token, index in ids.items() if token not in added},
            longer=is_longer(self.accounted.values),
            entered=frozenset(token for token in ids if token in added and token in pieces),
        )

    @property
    def replaced(self) -> bool:
        """Whether the report says that another checkpoint's tokenizer took the place of the first's."""
        return (TOKENIZER, "") in self.accounted.values

    def _new_ids(self) -> Iterable[int]:
        """The ids of the second tokenizer that are not the first's."""
        if self.correspondence.ids is not None and not self.correspondence.ids.in_place:
            return self.correspondence.fresh_ids
        return range(self.tokenizers[0].size, self.tokenizers[1].size)

    def _renamed(self) -> Iterator[tuple[str, Renamed]]:
        """What the report says of renamed tokens, of those that the first has under their old names."""
        first, second = self.tokenizers
        for old, now in self.accounted.renamed.items():
            index = first.id_of(old)
            ids = self.correspondence.ids
            place = index if index is None or ids is None or ids.in_place else ids.place(index)
            if place is not None and place == second.id_of(now.content):
                yield old, now

    def tensors(self) -> Iterator[str]:
        """What tensors are not the first's, less those that the report says were changed; and new rows that are wild."""
        before, after = self.vocabularies
        axes = {item.name: item.axis for item in before.tensors}
        fresh, live = self.correspondence.fresh_ids, self._live
        yield from changed_tensors(self.old, self.new, axes, self.correspondence.ids, self.accounted.tensors)
        yield from new_value_head_findings(self.old, self.new)
        if self.accounted.promise:
            return
        yield from lost_ties(self.old, self.new)
        yield from check_new_biases(self.new, after, fresh, live)
        tables = [item for item in after.tensors if item.name not in self.accounted.written]
        for row in wild_rows(self.new, tables, fresh, live):
            yield row.sentence(self.tokenizers[1].token_of)

    def bound(self) -> KLPromise | None:
        """The bound on the KL: the promised one, or one that the new rows keep by what they are."""
        if self.accounted.promise:
            kl = self.accounted.promise.get("kl")
            return KLPromise(kl["kind"], kl.get("rows_averaged", 0)) if kl else None
        return likely_bound(self.new, self.vocabularies[1], self.correspondence.fresh_ids, self._live)

    @property
    def _live(self) -> int:
        """How many ids of the second have rows that are the first's."""
        return len(self.correspondence.drawn_in_result or ())

    def unjudged(self, left_out: Collection[str], measured: OutputsReport | None) -> str:
        """Why the new rows were not all judged; empty where they were, where there are none, and where the report vouches."""
        if self.accounted.promise or not self.correspondence.fresh_ids:
            return ""
        if "bytes" in left_out:
            return "the check of bytes was left out"
        if self.vocabularies[1].has_output and (measured is None or measured.distribution is None):
            return "the share of the next-token probability that new ids take was not measured"
        return ""

    def likelier_ids(self, measured: OutputsReport) -> Iterator[str]:
        """What is wrong with the probability that new ids take, where no report says how their rows were made."""
        if measured.distribution and not self.accounted.promise:
            yield from check_shares(measured.distribution, self.tokenizers[1].token_of)


def _correspondence(old_rows: int, new_rows: int, first: TokenizerFiles, second: TokenizerFiles) -> Correspondence:
    """The ids that only the second tokenizer has, and rows behind both tokenizers that only the second table has, are fresh.

    Where the second table has fewer rows, each of its ids is the first's that has the same token.
    """
    if not old_rows:
        return IDENTITY
    old_ids, new_ids = min(first.size, old_rows), second.size
    if new_rows < old_rows:
        origins = [first.id_of(second.tokens.get(index, "")) for index in range(new_rows)]
        rows = [index if index is None or index < old_rows else None for index in origins]
        return Correspondence(IndexMap.of_origins(old_rows, rows), old_ids)
    fresh = {*range(old_ids, new_ids), *range(max(new_ids, old_rows), new_rows)}
    return Correspondence.of_ids(old_rows, new_rows, old_ids, tuple(sorted(fresh)))


def _chat_templates(checkpoint: Checkpoint) -> tuple[object, ...]:
    documents = checkpoint.documents
    inside = documents.get("tokenizer_config.json", {}).get("chat_template")
    return documents.get("chat_template.jinja"), documents.get("chat_template.json"), inside
