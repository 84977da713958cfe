"""A file of a hub repository whose bytes are read by ranges, until it lies in the hub's cache."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftkit.checkpoint.hub.requests import hub_faults, is_of_the_client
from graftkit.errors import StorageFault, printable

#: Times that a range is asked for again where the connection broke, and seconds between them.
RETRIES, PAUSE = 2, 1.0

#: Bytes that are passed over where a server sends the file from its beginning whatever was asked for: a header's length.
_PASSED_OVER = 8

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class HubFile:
    """The file ``name`` of a repository at one commit; ``path`` is where it lies once it was downloaded.

    Open it like a path where that is certain; :meth:`read` takes it from wherever it is. ``size`` is what the commit's listing
    says, in bytes.
    """

    repo_id: str
    commit: str
    name: str
    size: int
    path: Path
    _etags: list[str] = field(default_factory=list, repr=False, compare=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return f"{self.repo_id}: {printable(self.name)}"

    @property
    def is_here(self) -> bool:
        """Whether it was downloaded."""
        return self.path.exists()

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return ``nbytes`` bytes from ``offset`` on, by a request that transfers no others; none is made for none.

        Raises:
            InputRejected: access is refused.
            StorageFault: the hub cannot be reached, sends something else, or the file is not the one that was listed.
        """
        for left in range(RETRIES, -1, -1) if nbytes else ():
            try:
                with hub_faults(self.repo_id, self.commit, doing=f"sending {printable(self.name)}"):
                    return self._ask(offset, nbytes)
            except StorageFault as fault:
                if not left or not is_of_the_client(fault.__cause__):
                    raise
                time.sleep(PAUSE)
        return b""

    def _ask(self, offset: int, nbytes: int) -> bytes:
        from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # said in words alone

        url = hf_hub_url(self.repo_id, self.name, revision=self.commit)
        headers = {
            **build_hf_headers(),
            "Range": f"bytes={offset}-{offset + nbytes - 1}",
            "Accept-Encoding": "identity",
        }
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            hf_raise_for_status(response)
            self._check(response, offset)
            skipped = offset if response.status_code != 206 else 0
            return self._take(response.iter_raw(), skipped, nbytes)

    def _check(self, response: Any, offset: int) -> None:
        """Compare what the answer says of the file with the commit's listing, and with what earlier answers said."""
        answers = (*response.history, response)
        of_hub = next((answer for answer in answers if "X-Repo-Commit" in answer.headers), response)
        commit = of_hub.headers.get("X-Repo-Commit", self.commit)
        etag = of_hub.headers.get("X-Linked-Etag") or of_hub.headers.get("ETag")
        if etag is not None and not self._etags:
            self._etags.append(etag)
        if commit != self.commit or (etag is not None and etag != self._etags[0]):
            raise self._changed()
        if response.status_code != 206:
            if offset > _PASSED_OVER:
                raise StorageFault(f"{self}: the server sends only whole files, no ranges of them")
            total = response.headers.get("Content-Length", "*")
        else:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != offset:
                raise StorageFault(f"{self}: the server sent another range than was asked for")
            total = found[3]
        if total not in ("*", str(self.size)):
            raise self._changed()

    def _take(self, pieces: Iterator[bytes], skipped: int, nbytes: int) -> bytes:
        """The bytes behind the first ``skipped`` ones; whatever follows is not waited for."""
        held = bytearray()
        for piece in pieces:
            held += piece
            if len(held) >= skipped + nbytes:
                break
        if len(held) < skipped + nbytes:
            raise StorageFault(f"{self}: the server sent {len(held)} bytes of {skipped + nbytes}; run again")
        return bytes(held[skipped : skipped + nbytes])

    def _changed(self) -> StorageFault:
        return StorageFault(f"{self}: changed on the hub while it was read; run again")
