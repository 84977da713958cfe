"""Which config values govern the size of the vocabulary, and what moves with them: the differential skeleton."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture import skeleton as sk
from graftkit.architecture.capabilities import parameters_of
from graftkit.architecture.embeddings import INPUT, OUTPUT, call_getter, embedding_of
from graftkit.errors import InputRejected, few

#: How many rows the second build has more: a prime, so that no other size moves by it for another reason.
STEP = 13


@dataclass(frozen=True, slots=True)
class Governing:
    """The config paths that hold the vocabulary's size, and the tensors (name in memory -> axis) that they move.

    ``doubtful`` are those of ``moved`` that only a further value of the same size moves, with its path.
    """

    paths: tuple[sk.Path, ...]
    moved: Mapping[str, int]
    doubtful: Mapping[str, sk.Path]


def find_governing(config: Mapping[str, Any], skeleton: sk.Skeleton, rows: int) -> Governing:
    """Change each config value that equals ``rows`` by :data:`STEP`, and see which tensors move.

    Raises:
        InputRejected: no config value, or no set of them, governs the input and the output embedding.
    """
    table = skeleton.weight_names(INPUT)
    needed = table | skeleton.weight_names(OUTPUT)
    values = _integers(config, skeleton)
    candidates = sorted((path for path, value in values.items() if value == rows), key=_sort_key)
    effects: dict[sk.Path, dict[str, int]] = {}
    for path in candidates:
        moved = effect(config, skeleton, (path,), rows)
        if moved is not None:
            effects[path] = moved
            if needed <= moved.keys() and _sort_key(path)[0] == 0:
                break
    chosen = [path for path, moved in effects.items() if table & moved.keys()][:1]
    covered = set().union(*(effects[path].keys() for path in chosen))
    chosen += [
        path
        for path, moved in effects.items()
        if path not in chosen and needed & moved.keys() and not covered & moved.keys()
    ]
    vocabularies = [path for path in candidates if "vocab" in path[-1]]
    for paths in (tuple(dict.fromkeys([*chosen, *vocabularies])), tuple(chosen), tuple(vocabularies)):
        moved = effect(config, skeleton, paths, rows) if paths else None
        if moved is not None and needed <= moved.keys():
            return Governing(paths, moved, _doubtful(config, skeleton, rows, moved, chosen, paths))
    raise InputRejected(f"{skeleton.architecture}: {_why_not_governed(config, skeleton, rows, values)}")


def two_vocabularies(config: Mapping[str, Any], skeleton: sk.Skeleton, rows: int) -> str | None:
    """What to say of a class whose decoder has a vocabulary of its own, of another size; None where there is one vocabulary.

    ``rows`` are those of the input embedding. Another table of token ids has another number of rows, and each of the two sizes is
    moved by a config value that leaves the other as it is.
    """
    first = skeleton.weight_names(INPUT)
    second = {name for name in _decoder_tables(skeleton) - first if skeleton.shapes[name][0] != rows}
    if not second:
        return None
    size = skeleton.shapes[min(second)][0]
    second = {name for name in second if skeleton.shapes[name][0] == size}
    values = _integers(config, skeleton)
    paths = [
        _moves_alone(config, skeleton, sorted((p for p, v in values.items() if v == count), key=_sort_key), mine, other)
        for count, mine, other in ((rows, first, second), (size, second, first))
    ]
    if None in paths:
        return None
    one, other = (".".join(path) for path in paths if path)
    return (
        f"has two vocabularies: {rows} rows in {few(first)} by config.json's {one}, and {size} in {few(second)} by {other}; the next"
        " free id is another one in each, so no id of a new token is right for both; give a checkpoint with one vocabulary"
    )


def _decoder_tables(skeleton: sk.Skeleton) -> frozenset[str]:
    """Names in memory of the output table, and of the table of a decoder that takes token ids beside the encoder's."""
    names = skeleton.weight_names(OUTPUT)
    if {"input_ids", "decoder_input_ids"} <= parameters_of(skeleton.model).keys():
        decoder = call_getter(skeleton.model, "get_decoder")
        table = None if decoder is None else embedding_of(decoder, INPUT)
        names |= frozenset() if table is None else skeleton.weight_names_of(table)
    return names


def _moves_alone(
    config: Mapping[str, Any],
    skeleton: sk.Skeleton,
    paths: list[sk.Path],
    tables: Collection[str],
    others: Collection[str],
) -> sk.Path | None:
    """The first of ``paths`` that moves all of ``tables`` and none of ``others``."""
    for path in paths:
        moved = effect(config, skeleton, (path,), skeleton.shapes[min(tables)][0]) or {}
        if set(tables) <= moved.keys() and not moved.keys() & set(others):
            return path
    return None


def resized_by_transformers(config: Mapping[str, Any], skeleton: sk.Skeleton, rows: int) -> frozenset[str]:
    """Names in memory of the embeddings that transformers' own ``resize_token_embeddings`` gives as many rows as it is asked for.

    Its authors override it where token ids index tables beside the input embedding, such as one for each layer; that may have had
    another number of ``rows``.
    """
    import torch

    fresh = sk.build_skeleton(config, skeleton.architecture)
    with sk.quiet():
        try:
            fresh.model.resize_token_embeddings(rows + STEP, mean_resizing=False)
        except Exception:  # noqa: BLE001 - where it does not work it says nothing
            return frozenset()
    after = {name: tuple(value.shape) for name, value in fresh.model.state_dict().items()}
    embeddings = {
        f"{name}.weight"
        for name, module in fresh.model.named_modules(remove_duplicate=False)
        if isinstance(module, torch.nn.Embedding)
    }
    return frozenset(
        name for name in embeddings & after.keys() if after[name][0] == rows + STEP != skeleton.shapes[name][0]
    )


def moved_axes(before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Name -> the one axis that grew by STEP; None when tensors come and go or move otherwise."""
    if before.keys() != after.keys():
        return None
    moved = {}
    for name, old in before.items():
        new = after[name]
        if new == old:
            continue
        axes = [axis for axis, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
        if len(old) != len(new) or len(axes) != 1 or new[axes[0]] - old[axes[0]] != STEP:
            return None
        moved[name] = axes[0]
    return moved


def _integers(config: Mapping[str, Any], skeleton: sk.Skeleton) -> dict[sk.Path, int]:
    return dict(sk.integer_paths(skeleton.model.config.to_dict())) | dict(sk.integer_paths(dict(config)))


def _sort_key(path: sk.Path) -> tuple[int, int, sk.Path]:
    return (0 if "vocab" in path[-1] else 1, len(path), path)


def effect(
    config: Mapping[str, Any], skeleton: sk.Skeleton, paths: tuple[sk.Path, ...], value: int
) -> dict[str, int] | None:
    """What moves when every one of ``paths``, now ``value``, is :data:`STEP` more; None where nothing can be told."""
    try:
        other = sk.build_skeleton(sk.with_values(config, paths, value + STEP), skeleton.architecture)
    except InputRejected:
        return None
    return moved_axes(skeleton.shapes, other.shapes)


def _doubtful(
    config: Mapping[str, Any], skeleton: sk.Skeleton, rows: int, moved: Mapping[str, int], chosen: list[sk.Path],
    paths: tuple[sk.Path, ...],
) -> dict[str, sk.Path]:  # fmt: skip
    """The tensors that move only with a value that neither the input nor the output embedding depends on."""
    sure = effect(config, skeleton, tuple(chosen), rows) if chosen and tuple(chosen) != paths else moved
    if sure is None:
        return {}
    doubtful: dict[str, sk.Path] = {}
    for path in paths:
        if path not in chosen and not moved.keys() <= sure.keys() | doubtful.keys():
            alone = effect(config, skeleton, (path,), rows) or {}
            doubtful |= dict.fromkeys(alone.keys() - sure.keys() - doubtful.keys(), path)
    return doubtful


def _why_not_governed(
    config: Mapping[str, Any], skeleton: sk.Skeleton, rows: int, values: Mapping[sk.Path, int]
) -> str:
    """The reason in words; most often the table has rows behind the vocabulary's, for images, audio or prompts."""
    if two := two_vocabularies(config, skeleton, rows):
        return two
    found = {}
    for path, value in sorted(values.items(), key=lambda item: _sort_key(item[0])):
        moved = effect(config, skeleton, (path,), value) if "vocab" in path[-1] and value < rows else None
        if moved and skeleton.weight_names(INPUT) & moved.keys():
            found[path] = len(skeleton.weight_names(OUTPUT) & moved.keys())
    if not found:
        return f"no value of config.json governs the {rows} rows of its input and output embeddings"
    path = max(found, key=found.__getitem__)
    return (
        f"the input embedding has {rows} rows where config.json's {'.'.join(path)} is {values[path]}: the class itself uses"
        f" what lies behind the vocabulary ({rows - values[path]} rows), and new ids would run into it"
    )
