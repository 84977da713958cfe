"""What the report says of new rows: how they compare with the trained rows of their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graftkit.checkpoint.reading import row_chunks
from graftkit.initializers.comparison import compare_rows
from graftkit.operations.vocabulary.rows import RowMaker


def row_figures(maker: RowMaker, token_of: Callable[[int], str | None]) -> Mapping[str, Any]:
    """The maker's own figures; for each input or output table also ``new_rows``: norms and nearest neighbours by token.

    ``token_of`` knows the old ids. Tables are streamed; called after the rows were written.
    """
    for item in maker.vocabulary.tensors:
        maker.values(item)  # what another process has written is not made here yet
    found: dict[str, Any] = {name: dict(values) for name, values in maker.figures().items()}
    contents = {row.index: row.content for row in maker.rows}
    for item in maker.vocabulary.tensors:
        if item.role not in ("input", "output") or not maker.ids or maker.is_bias(item):
            continue
        stored = maker.table(item)
        old = lambda stored=stored, axis=item.axis: row_chunks(stored, axis, maker.live_ids)  # noqa: E731
        compared = compare_rows(old, maker.live_ids, maker.values(item), list(maker.ids))
        for row in compared["rows"]:
            row["token"] = contents[row["id"]]
            for neighbour in row["neighbours"]:
                neighbour["token"] = token_of(neighbour["id"])
        found.setdefault(item.name, {})["new_rows"] = {"role": item.role, "tied": maker.vocabulary.tied, **compared}
    return found
