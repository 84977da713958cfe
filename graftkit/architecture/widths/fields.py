"""A field of a config by the name that transformers has for it: where config.json holds it, and what it is now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.skeleton import Path, build_config
from graftkit.errors import printable
from graftkit.recipe_file.wording import did_you_mean


@dataclass(frozen=True, slots=True)
class Field:
    """``path`` is where config.json holds the value, ``value`` what it is now: None where the class derives a width by itself."""

    path: Path
    value: int | None

    @property
    def shown(self) -> str:
        """The path as a recipe writes it."""
        return ".".join(self.path)


def find_field(config: Mapping[str, Any], name: str) -> Field:
    """Find the field ``name``: of the whole config, else of the text model's section, or with dots of the section that they name.

    Raises:
        ValueError: there is none of that name, or it is no number; the message says which there are, or what it is.
    """
    built = build_config(config)
    *steps, last = name.split(".")
    sections = [(tuple(steps), _section(built, steps))] if steps else list(_sections(built))
    held = [(section, values) for section, values in sections if values is not None]
    for section, values in held:
        if last in _names(values):
            return Field((*section, _written_name(config, section, values, last)), _number(values, last))
    near = did_you_mean(name, {".".join((*section, own)) for section, values in held for own in _names(values)})
    if near:
        raise ValueError(f"is no field of this config; did you mean {near!r}?")
    known = sorted(".".join((*section, own)) for section, values in held for own in _numbers(values))
    raise ValueError(f"is no field of this config; its numbers are {printable(', '.join(known))}")


def _sections(built: Any) -> Iterator[tuple[Path, Any]]:
    """The whole config, and the section of the text model where that is another."""
    yield (), built
    text = built.get_text_config()
    yield from (((key,), value) for key, value in vars(built).items() if value is text and text is not built)


def _section(built: Any, steps: list[str]) -> Any:
    for step in steps:
        built = getattr(built, step, None)
    return built if hasattr(built, "to_dict") else None


def _names(held: Any) -> set[str]:
    return {*held.to_dict(), *held.attribute_map}


def _numbers(held: Any) -> list[str]:
    return [name for name, value in held.to_dict().items() if isinstance(value, int) and not isinstance(value, bool)]


def _written_name(config: Mapping[str, Any], section: Path, held: Any, name: str) -> str:
    """The name under which config.json has the value: this one, or what the class calls it."""
    plain: Any = config
    for key in section:
        plain = plain.get(key) or {}
    return name if name in plain else str(held.attribute_map.get(name, name))


def value_in(section: Any, name: str) -> Any:
    """What a section of a config has under a name of transformers; None too where that differs between layers.

    A config whose layers differ refuses in its own way.
    """
    try:
        return getattr(section, name, None)
    except Exception:  # noqa: BLE001 - its error is of a class that older versions of transformers do not have
        return None


def _number(section: Any, name: str) -> int | None:
    value = value_in(section, name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, list | tuple):
        what = f"is a list of {len(value)} values here, one for each block; blocks of unequal width are not widened"
    else:
        what = f"is no width: config.json has {printable(repr(value)[:60])} for {name}"
    raise ValueError(what)
