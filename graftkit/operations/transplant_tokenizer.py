"""transplant_tokenizer: another checkpoint's tokenizer, the rows of shared tokens as they are, and new rows for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.index_map import IndexMap
from graftkit.architecture.skeleton import with_values
from graftkit.architecture.vocabulary import Vocabulary
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.examples import first_texts
from graftkit.checkpoint.tokenizer import read_tokenizer, template_notes
from graftkit.checkpoint.tokenizer.folder import DOCUMENTS, TokenizerFolder, is_tokenizer_file
from graftkit.checkpoint.tokenizer.shared import SharedTokens, shared_tokens
from graftkit.checkpoint.tokenizer.spelling import Spelling
from graftkit.errors import InputRejected, RecipeError, few, plural, printable
from graftkit.operations.base import Context, Outcome, VocabularyOutcome, check_plain_weights
from graftkit.operations.vocabulary.distillation import Distillation
from graftkit.operations.vocabulary.donor_space import DonorSpace
from graftkit.operations.vocabulary.moved_ids import MovedIds
from graftkit.operations.vocabulary.still_needed import check_positions
from graftkit.operations.vocabulary.tables import check_renumbered, one_vocabulary
from graftkit.operations.vocabulary.transplanted_rows import Transplant, TransplantedRows, new_rows
from graftkit.recipe.schemes import Distill
from graftkit.recipe.transplant_tokenizer import CopyShared, Omp, TransplantTokenizer
from graftkit.verification.promises import Promise, PromiseClass
from graftkit.verification.subject import Replaced
from graftkit.verification.tokens.text_quality import MOST_BYTES, TextCheck
from graftkit.verification.tokens.transplanted import TransplantCheck

#: Documents of a processor that may hold a copy of the chat template.
PROCESSORS = ("chat_template.json", "processor_config.json")


@dataclass(frozen=True, slots=True)
class _Found:
    """The base and the donor side by side."""

    vocabulary: Vocabulary
    donor: TokenizerFolder
    base: Spelling
    other: Spelling
    shared: SharedTokens
    size: int

    @property
    def origins(self) -> tuple[int | None, ...]:
        """The base's row of each row of the result; None for one that is made."""
        return tuple(self.shared.origins.get(index) for index in range(self.size))

    @property
    def made(self) -> list[int]:
        """The ids whose rows are made, padding too."""
        return [index for index, origin in enumerate(self.origins) if origin is None]


def transplant_tokenizer(spec: TransplantTokenizer, checkpoint: Checkpoint, context: Context) -> Outcome:
    """Put the donor's tokenizer in the place of the base's, and a row for each of its tokens into every table.

    Raises:
        InputRejected: a tokenizer cannot be read, the base has not one vocabulary, a config names an id that has no counterpart, or the
            donor has no weights where the scheme asks for them.
        RecipeError: the donor's tokenizer is the base's, or too few tokens are shared.
    """
    vocabulary = one_vocabulary(checkpoint)
    check_renumbered(checkpoint, vocabulary)
    donor = TokenizerFolder.open(spec.donor)
    tokenizer = read_tokenizer(checkpoint.documents, carried=checkpoint.carried)
    _check_other(checkpoint, donor)
    _check_class(checkpoint, donor)
    base, other = Spelling(tokenizer.within(vocabulary.rows)), Spelling(donor.files)
    multiple = spec.pad_to_multiple_of or 1
    found = _Found(
        vocabulary, donor, base, other, shared_tokens(base, other), -(-donor.files.size // multiple) * multiple
    )
    moved = MovedIds(tokenizer, donor.files, found.shared.places)
    changes = moved.documents(checkpoint, vocabulary.rows)
    changes["config.json"] = with_values(changes["config.json"], vocabulary.config_paths, found.size)
    check_positions(checkpoint, vocabulary, changes["config.json"], "give a donor whose pad token has that id")
    after = _with_tokenizer(checkpoint, donor, changes)
    transplant = _transplant(spec, checkpoint, after, found, context)
    tables = {item: checkpoint.tensors[item.name] for item in vocabulary.tensors}
    result = after.with_tensors(dict(transplant.tensors(tables)))
    places = {index: origin for origin, index in found.shared.places.items()}
    ids = IndexMap.of_origins(vocabulary.rows, [places.get(index) for index in range(found.size)])
    tokens = {token: index for index in found.made if (token := donor.files.token_of(index)) is not None}
    return Outcome(
        result,
        _promise(vocabulary, found),
        tuple(_notes(spec, checkpoint, found, moved)),
        Correspondence(ids, min(tokenizer.size, vocabulary.rows)),
        VocabularyOutcome(
            {},
            frozenset(),
            chat_template_changed=False,
            kl=lambda: None,
            given_rows=tokens,
            replaced=Replaced(donor.directory),
        ),
        checks=(
            TransplantCheck(checkpoint, result, donor, tuple(vocabulary.tensors)),
            *transplant.checks,
            TextCheck(_texts(spec)),
        ),
        prepare=transplant.prepare,
        figures=lambda: {**_counts(found), **transplant.figures()},
    )


def _texts(spec: TransplantTokenizer) -> tuple[str, ...]:
    """The first texts of the file, as many as are measured on."""
    try:
        return first_texts(Path(spec.texts), MOST_BYTES) if spec.texts else ()
    except RecipeError as error:
        raise RecipeError(error.problems, field="texts") from error


def _check_other(checkpoint: Checkpoint, donor: TokenizerFolder) -> None:
    ours = {name: checkpoint.documents[name] for name in DOCUMENTS if name in checkpoint.documents}
    if ours == dict(donor.documents):
        raise RecipeError("has the tokenizer that the base has already; there is nothing to do", field="donor")


def _check_class(checkpoint: Checkpoint, donor: TokenizerFolder) -> None:
    """Without a class of its own a tokenizer is loaded as that of the model's type, which is the base's."""
    named = (donor.documents.get("tokenizer_config.json") or {}).get("tokenizer_class")
    if named is None and donor.model_type != checkpoint.config.get("model_type"):
        raise InputRejected(
            f"{printable(donor.name)}: tokenizer_config.json names no tokenizer_class, so that transformers would load it as"
            " this base's; save it once: AutoTokenizer.from_pretrained(<donor>).save_pretrained(<folder>)"
        )


def _with_tokenizer(checkpoint: Checkpoint, donor: TokenizerFolder, changes: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint with the donor's tokenizer files, byte for byte, and none of its own."""
    gone = [name for name in DOCUMENTS if name in checkpoint.documents]
    gone += [path for path in checkpoint.carried if is_tokenizer_file(path)]
    copies: dict[str, Any] = {
        name: {key: value for key, value in checkpoint.documents[name].items() if key != "chat_template"} or None
        for name in PROCESSORS
        if "chat_template" in (checkpoint.documents.get(name) or {})
    }
    without = checkpoint.with_documents({**dict.fromkeys(gone), **copies, **changes})
    return without.with_brought(donor.directory, donor.documents, donor.carried)


def _transplant(
    spec: TransplantTokenizer, checkpoint: Checkpoint, after: Checkpoint, found: _Found, context: Context
) -> Transplant:
    live = min(found.base.files.size, found.vocabulary.rows)
    shared = frozenset(found.shared.origins.values())
    left_out = [index for index in range(live) if index not in shared] if isinstance(spec.init, CopyShared) else []
    wanted = [index for index in found.made if index in found.donor.files.tokens and index not in found.other.unused]
    space = _donor_space(spec, found, wanted, spec.init.k) if isinstance(spec.init, Omp) else None
    seed, origins = (context.seed, context.place), found.shared.origins
    distillation = None
    if isinstance(spec.init, Distill):
        distillation = Distillation(spec.init, checkpoint, after, found.vocabulary, origins.get, seed)

    def make() -> TransplantedRows:
        rows = tuple(new_rows(found.made, spec.init, found.base, found.other, wanted))
        return TransplantedRows(
            checkpoint, found.vocabulary, live, rows, seed, left_out, distillation=distillation, space=space
        )

    return Transplant(checkpoint, found.origins, make, distillation)


def _donor_space(spec: TransplantTokenizer, found: _Found, wanted: Sequence[int], k: int) -> DonorSpace:
    plain = {origin: index for origin, index in found.shared.places.items() if index in found.other.texts}
    if len(plain) < k:
        raise RecipeError(
            f"k is {k}, but base and donor share only {plural(len(plain), 'plain token')}; give a smaller k, or another init",
            field="init.k",
        )
    try:
        donor = Checkpoint.open(spec.donor)
    except InputRejected as error:
        raise InputRejected(
            f"{error}; omp combines rows of the donor, while fvt asks for nothing but its tokenizer"
        ) from error
    check_plain_weights(donor, spec.op)
    return DonorSpace(donor, one_vocabulary(donor), plain, wanted, k)


def _promise(vocabulary: Vocabulary, found: _Found) -> Promise:
    what = "hidden states and logits" if vocabulary.has_output else "hidden states"
    kept = len(found.shared.places)
    return Promise(
        PromiseClass.INTENTIONAL,
        f"every text is split by the donor's tokenizer; {what} over the {kept:,} ids that both have stay",
        "sequences of shared ids",
        ("a kernel may round logits differently where the table's shape changed, then within the stated tolerance",),
    )


def _counts(found: _Found) -> dict[str, Any]:
    return {
        "shared": len(found.shared.origins),
        "by_role": {role: index for index, role in found.shared.by_role.items()},
        "made": len(found.made),
    }


def _notes(spec: TransplantTokenizer, checkpoint: Checkpoint, found: _Found, moved: MovedIds) -> Iterator[str]:
    tokens, shared = len(found.donor.files.tokens), len(found.shared.origins)
    yield f"{shared:,} of the donor's {plural(tokens, 'token')} are tokens of the base and keep their rows"
    if (twice := shared - len(found.shared.places)) > 0:
        yield f"{twice:,} of these share a row of the base with another"
    if made := found.made:
        yield f"{plural(len(made), 'row')} of each table made by {spec.init.scheme}{_how(spec)}"
    if renamed := list(_renamed_roles(found)):
        yield f"special tokens with the row of the same role: {', '.join(renamed)}"
    lost = [role for role in found.base.files.special if role not in found.donor.files.special]
    if lost:
        yield f"the donor's tokenizer has no {few(lost)}"
    yield from _length_note(checkpoint, found.donor)
    yield from moved.notes
    yield from found.vocabulary.notes
    yield from template_notes(found.donor.documents, found.donor.files)


def _renamed_roles(found: _Found) -> Iterator[str]:
    for index, role in found.shared.by_role.items():
        now, old = found.donor.files.tokens[index], found.base.files.tokens[found.shared.origins[index]]
        if now != old:
            yield f"{role} {printable(now)!r} has that of {printable(old)!r}"


def _how(spec: TransplantTokenizer) -> str:
    if isinstance(spec.init, CopyShared):
        return ": the mean of the rows that are kept"
    if isinstance(spec.init, Distill):
        return ": the mean of their pieces, input rows then fitted to texts"
    return f" with k = {spec.init.k}" if isinstance(spec.init, Omp) else ""


def _length_note(checkpoint: Checkpoint, donor: TokenizerFolder) -> Iterator[str]:
    ours, theirs = (
        (documents.get("tokenizer_config.json") or {}).get("model_max_length")
        for documents in (checkpoint.documents, donor.documents)
    )
    if ours != theirs and theirs is not None:
        yield f"model_max_length is the donor's, {theirs:g}; the base's was {'not set' if ours is None else format(ours, 'g')}"
