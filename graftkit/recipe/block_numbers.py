"""How recipes number the blocks of a model: numbers, ranges such as ``20-27``, ``first 4`` and ``last 4``."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import BeforeValidator, Field

from graftkit.recipe.spec import problem
from graftkit.recipe_file.wording import found

_RANGE = re.compile(r"([0-9]{1,6})-([0-9]{1,6})\Z")
_COUNTED = re.compile(r"(first|last) ([1-9][0-9]{0,5})\Z")

_PATTERN = "^((first|last) [1-9][0-9]{0,5}|[0-9]{1,6}-[0-9]{1,6})$"


def _items(value: object) -> object:
    listed = value if isinstance(value, list | tuple) else (value,)
    if not listed:
        raise problem("names no block")
    for item in listed:
        if type(item) is int and 0 <= item < 10**6:
            continue
        if not isinstance(item, str) or not (_COUNTED.match(item) or _RANGE.match(item)):
            raise problem(
                f"must hold block numbers from 0 on, ranges such as '20-27', 'first N' or 'last N'; found {found(item)}"
            )
        span = _RANGE.match(item)
        if span and int(span[1]) > int(span[2]):
            raise problem(f"the range '{item}' ends before it begins; write '{span[2]}-{span[1]}'")
    return tuple(listed)


_Item = Annotated[int, Field(ge=0, lt=10**6)] | Annotated[str, Field(json_schema_extra={"pattern": _PATTERN})]

#: ``[0, 20-27, first 2, last 4]``, or one of these by itself.
BlockNumbers = Annotated[tuple[_Item, ...], BeforeValidator(_items, json_schema_input_type=list[_Item] | _Item)]


def resolve_blocks(items: Iterable[int | str], count: int) -> tuple[int, ...]:
    """Return the numbers that ``items`` name in a model of ``count`` blocks, in the order in which they are written.

    Raises:
        ValueError: a block is not there; the message says which ones are.
    """
    numbers: list[int] = []
    for item in items:
        named = _numbers_of(item, count)
        if named[-1] >= count:
            raise ValueError(f"there is no block {named[-1]}: the model has {count}, numbered from 0 to {count - 1}")
        numbers += named
    return tuple(numbers)


def _numbers_of(item: int | str, count: int) -> range:
    if isinstance(item, int):
        return range(item, item + 1)
    if span := _RANGE.match(item):
        return range(int(span[1]), int(span[2]) + 1)
    end, _, number = item.partition(" ")
    if int(number) > count:
        raise ValueError(f"'{item}' names more blocks than there are: the model has {count}")
    return range(count - int(number), count) if end == "last" else range(int(number))


def repeated_block(numbers: Iterable[int]) -> int | None:
    """The first block that is named twice; None where each is named once."""
    return next((number for number, times in Counter(numbers).items() if times > 1), None)
