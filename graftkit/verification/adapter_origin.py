"""Whether a base is the one that an adapter was made for, as far as files tell.

The report of the run that made the adapter holds digests of its base. Without one, adapter_config.json names the base: where that
is on this machine the two are compared, tensor by tensor; else the name alone speaks. The network is not asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.checkpoint.adapter import CONFIG
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.location import cached_folder
from graftkit.errors import GraftkitError, few, printable
from graftkit.verification.adapter_record import AdapterRecord
from graftkit.verification.digests import BaseDigests, checkpoint_digests


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
    weights: bool,
) -> Origin:  # fmt: skip
    """Compare ``base`` with what an adapter's ``config`` and its ``record`` name; its weights are read only with ``weights``.

    ``digests`` returns those of the base, with or without its weights.
    """
    if record is not None:
        different = tuple(differences(record.base, digests(weights and bool(record.base.weights))))
        if record.base.weights or different:
            return Origin(printable(record.path.name), different)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(named, str) or not named or not isinstance(revision, str | None):
        return Origin("", unknown=f"{CONFIG} names no base")
    folder = _folder(named, revision)
    if folder is not None:
        return _beside(named, folder, base, digests, weights=weights)
    if named == base.name and revision in (None, base.revision):
        return Origin(f"the name in {CONFIG}", tuple(_other_class(config, base)))
    if base.revision is not None and not os.path.isabs(named) and named.count("/") <= 1 and named != base.name:
        return Origin(
            f"the name in {CONFIG}", (f"{CONFIG} names {printable(named)!r}, and this is {printable(base.name)!r}",)
        )
    unknown = f"{CONFIG} names {printable(named)!r}, which is not on this machine to compare with"
    return Origin("", tuple(_other_class(config, base)), unknown)


def _folder(named: str, revision: str | None) -> Path | None:
    path = Path(os.path.expanduser(named))
    return path if path.is_dir() else cached_folder(named, revision)


def _beside(
    named: str, folder: Path, base: Checkpoint, digests: Callable[[bool], BaseDigests], *, weights: bool
) -> Origin:
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
    return Origin(known, tuple(f"{found} (named is {printable(named)!r})" for found in differences(old, new)))


def differences(old: BaseDigests, new: BaseDigests) -> Iterator[str]:
    """Yield how the base ``new`` is not the base ``old``: its tensors, its config, or its weights where both were read."""
    if new.tensors != old.tensors:
        yield "the base has other tensors than the one that the adapter was made for"
    if new.config != old.config:
        yield "the base's config.json is not that of the one that the adapter was made for"
    if old.weights and new.weights and old.weights != new.weights:
        names = few([name for name in {*old.weights, *new.weights} if old.weights.get(name) != new.weights.get(name)])
        yield f"the base's weights are not those that the adapter was made for: {names}"


def _other_class(config: Mapping[str, Any], base: Checkpoint) -> Iterator[str]:
    """Yield a sentence where peft noted a class of another kind of config than this base's."""
    import transformers

    mapping, ours = config.get("auto_mapping"), next(iter(base.config.get("architectures") or ()), None)
    noted = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    kinds = [getattr(getattr(transformers, str(name), None), "config_class", None) for name in (noted, ours)]
    if None not in kinds and kinds[0] is not kinds[1]:
        yield f"{CONFIG} names the class {printable(noted)}, and the base is a {printable(ours)}"
