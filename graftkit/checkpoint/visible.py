"""Files that another machine wrote: a network file system shows them late."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from graftkit.checkpoint.joined_staging import wait_until

#: Seconds within which a network file system must show what another machine has written and closed.
VISIBLE = 120.0


def sizes_of_files(directory: Path) -> dict[str, int]:
    """The bytes of each file that lies in a folder itself."""
    return {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()}


def wait_for_files(
    directory: Path, sizes: Mapping[str, int], otherwise: str = "what other ranks wrote is not there"
) -> None:
    """Wait until all these files are there with their sizes.

    Raises:
        StorageFault: they are not after :data:`VISIBLE` seconds.
    """
    wait_until(lambda: _are_visible(directory, sizes), VISIBLE, otherwise)


def _are_visible(directory: Path, sizes: Mapping[str, int]) -> bool:
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == size for name, size in sizes.items()
    )
