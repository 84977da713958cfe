"""Whether a base is the one that an adapter was made for, as far as files tell.

The report of the run that made the adapter holds digests of its base. Without one, adapter_config.json names the base: where that
is on this machine the two are compared, tensor by tensor; else the name alone speaks. The network is not asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.architecture.embeddings import INPUT
from graftkit.architecture.peft.source_class import named_folder
from graftkit.architecture.skeleton import build_skeleton
from graftkit.checkpoint.adapter import CONFIG
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.tokenizer import find_tokenizer
from graftkit.errors import GraftkitError, InputRejected, few, printable
from graftkit.verification.adapters.record import AdapterRecord
from graftkit.verification.digests import BaseDigests, checkpoint_digests, tensor_digests
from graftkit.verification.documents import Allowed, config_differences

OTHER_TENSORS = "the base has other tensors than the one that the adapter was made for"


@dataclass(frozen=True, slots=True)
class Origin:
    """What is known of the base that an adapter was made for.

    ``known_by`` names what tells whether this base is the one, empty where nothing does: then ``unknown`` says why.
    ``different`` holds a sentence for each way in which this base is another one.
    """

    known_by: str
    different: tuple[str, ...] = ()
    unknown: str = ""


def find_origin(
    config: Mapping[str, Any], record: AdapterRecord | None, base: Checkpoint, digests: Callable[[bool], BaseDigests], *,
    weights: bool, replaced: Callable[[], frozenset[str]] = frozenset,
) -> Origin:  # fmt: skip
    """Compare ``base`` with what an adapter's ``config`` and its ``record`` name; its weights are read only with ``weights``.

    ``digests`` returns those of the base, with or without its weights, ``replaced`` the names on disk of its tensors that the adapter
    brings whole: they are no evidence of another base.
    """
    if record is not None:
        different = tuple(differences(record.base, digests(weights and bool(record.base.weights))))
        if record.base.weights or different:
            return Origin(printable(record.path.name), different)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(named, str) or not named or not isinstance(revision, str | None):
        return Origin("", unknown=f"{CONFIG} names no base")
    folder = named_folder(named, revision)
    if folder is not None:
        return _beside(named, folder, base, digests, replaced, weights=weights)
    if named == base.name and revision in (None, base.revision):
        return Origin(f"the name in {CONFIG}", tuple(_other_class(config, base)))
    if base.revision is not None and not named.startswith((".", "/")) and named.count("/") <= 1 and named != base.name:
        return Origin(
            f"the name in {CONFIG}", (f"{CONFIG} names {printable(named)!r}, and this is {printable(base.name)!r}",)
        )
    unknown = f"{CONFIG} names {printable(named)!r}, which is not on this machine to compare with"
    return Origin("", tuple(_other_class(config, base)), unknown)


def _beside(
    named: str, folder: Path, base: Checkpoint, digests: Callable[[bool], BaseDigests],
    replaced: Callable[[], frozenset[str]], *, weights: bool,
) -> Origin:  # fmt: skip
    """Compare with the checkpoint in ``folder``; the same folder needs no look."""
    if folder.resolve() == base.directory:
        return Origin(f"the path in {CONFIG}")
    try:
        other = Checkpoint.open(str(folder))
    except GraftkitError:
        return Origin("", unknown=f"{CONFIG} names {printable(named)!r}, which cannot be opened to compare with")
    known = f"the checkpoint that {CONFIG} names"
    old, new = checkpoint_digests(other, weights=False), digests(False)  # noqa: FBT003 - without weights
    if old.tensors == new.tensors and weights:
        old, new = checkpoint_digests(other, weights=True), digests(True)  # noqa: FBT003
    different = tuple(differences(old, new))
    if old.tensors != new.tensors:
        different = (f"{OTHER_TENSORS}: {_unlike(other, base)}", *different[1:])
    if different and (whole := replaced()):
        with contextlib.suppress(InputRejected):  # a config that transformers refuses: what was found stands
            different = tuple(_apart(whole, other, base, weights=weights))
            known += ", apart from the tensors that the adapter brings"
    return Origin(known, tuple(f"{found} (named is {printable(named)!r})" for found in different))


def _apart(replaced: frozenset[str], old: Checkpoint, new: Checkpoint, *, weights: bool) -> Iterator[str]:
    """Yield how ``new`` is not ``old``, but for the tensors ``replaced`` and for what follows from their numbers of rows."""
    tables = [build_skeleton(one.config).embedding(INPUT) for one in (old, new)]
    before, after = (0 if table is None else int(table.weight.shape[0]) for table in tables)
    rows = Correspondence.of_ids(before, after, min(before, after), ())
    tokenizers = [find_tokenizer(one.documents, carried=one.carried) for one in (old, new)]
    yield from config_differences(old, new, Allowed(rows, tokenizers[0], tokenizers[1]))
    old, new = (one.with_tensors(dict.fromkeys(replaced & one.tensors.keys())) for one in (old, new))
    if unlike := _unlike(old, new):
        yield f"{OTHER_TENSORS}: {unlike}"
    elif weights:
        yield from _other_weights(tensor_digests(old.tensors), tensor_digests(new.tensors))


def _unlike(old: Checkpoint, new: Checkpoint) -> str:
    """The first tensor that only one of the two has, or that has another shape or dtype; empty where there is none."""
    forms = [{name: f"{t.dtype} {list(t.shape)}" for name, t in one.tensors.items()} for one in (old, new)]
    for name in sorted({*old.tensors, *new.tensors}):
        before, after = (form.get(name, "missing") for form in forms)
        if before != after:
            return f"{printable(name)} is {after}, there {before}"
    return ""


def differences(old: BaseDigests, new: BaseDigests) -> Iterator[str]:
    """Yield how the base ``new`` is not the base ``old``: its tensors, its config, or its weights where both were read."""
    if new.tensors != old.tensors:
        yield OTHER_TENSORS
    if new.config != old.config:
        yield "the base's config.json is not that of the one that the adapter was made for"
    if old.weights and new.weights:
        yield from _other_weights(old.weights, new.weights)


def _other_weights(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    if names := [name for name in {*old, *new} if old.get(name) != new.get(name)]:
        yield f"the base's weights are not those that the adapter was made for: {few(names)}"


def _other_class(config: Mapping[str, Any], base: Checkpoint) -> Iterator[str]:
    """Yield a sentence where peft noted a class of another kind of config than this base's."""
    import transformers

    mapping, ours = config.get("auto_mapping"), next(iter(base.config.get("architectures") or ()), None)
    noted = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    kinds = [getattr(getattr(transformers, str(name), None), "config_class", None) for name in (noted, ours)]
    if None not in kinds and kinds[0] is not kinds[1]:
        yield f"{CONFIG} names the class {printable(noted)}, and the base is a {printable(ours)}"
