"""``operations.0.init=mean``: values from the command line that replace those of the recipe."""

import itertools
from dataclasses import replace

from graftkit.recipe_file.problems import Document, Path, Place
from graftkit.recipe_file.wording import found, shown
from graftkit.recipe_file.yaml_source import parse_yaml


def apply_overrides(overrides: list[str], document: Document) -> None:
    """Put the values into ``document`` one after the other; a mapping that is missing on the way is made."""
    given: set[str] = set()
    for number, text in enumerate(overrides):
        place = Place(f"override {shown(text)}", (1, number))
        path, separator, value = text.partition("=")
        keys = path.split(".")
        if not separator or not all(keys):
            document.add((), "must be a path and a value, such as operations.0.init=mean", place)
        elif path in given:
            document.add((), f"{path} is overridden a second time", place)
        else:
            given.add(path)
            _apply(keys, value, place, document)


def _apply(keys: list[str], text: str, place: Place, document: Document) -> None:
    value = parse_yaml(text, lambda _: place)
    path, holder = _holder_of(keys, place, document)
    step = _step(holder, keys[-1]) if len(path) == len(keys) - 1 else None
    if step is None:
        document.add(path, _refusal(holder, keys[len(path)]), place)
        return
    path = (*path, step)
    document.problems += [replace(problem, path=(*path, *problem.path)) for problem in value.problems]
    if value.problems and value.data is None:
        return
    holder[step] = value.data  # type: ignore[index]
    document.places = {old: kept for old, kept in document.places.items() if old[: len(path)] != path}
    document.places[path] = place
    document.places |= {(*path, *inner): there for inner, there in value.places.items()}


def _holder_of(keys: list[str], place: Place, document: Document) -> tuple[Path, object]:
    """The value that holds the last of ``keys`` and its path; a shorter path where there is no way further."""
    path: Path = ()
    holder = document.data
    for key, following in itertools.pairwise(keys):
        step = _step(holder, key)
        if step is None:
            break
        if isinstance(holder, dict) and holder.get(step) is None:
            if _is_index(following):
                break
            holder[step] = {}
            document.places[*path, step] = place
        path, holder = (*path, step), holder[step]  # type: ignore[index]
    return path, holder


def _step(holder: object, key: str) -> str | int | None:
    if isinstance(holder, dict):
        return key
    if isinstance(holder, list) and _is_index(key) and int(key) < len(holder):
        return int(key)
    return None


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 10


def _refusal(holder: object, key: str) -> str:
    if isinstance(holder, dict):
        return f"there is no list '{key}' to override an item of"
    if not isinstance(holder, list):
        return f"has no field {shown(key)}; it is {found(holder)}"
    return f"has no item {shown(key)}; it is a list of {len(holder)}, and its items count from 0"
