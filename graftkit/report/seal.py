"""The report's own digest, its last value: over its own bytes, with zeros in the digest's place."""

from __future__ import annotations

import hashlib
import re

#: The key of the report's own digest.
SEAL = "sha256_of_this_report"

UNSEALED, _END = "0" * 64, '"\n}\n'
_SEALED = re.compile(rb'"' + SEAL.encode() + rb'": "([0-9a-f]{64})"\n\}\n\Z')


def sealed(raw: bytes) -> bytes:
    """A report that ends with :data:`UNSEALED` under :data:`SEAL`, with its digest there."""
    start = len(raw) - len(UNSEALED) - len(_END)
    return raw[:start] + (hashlib.sha256(raw).hexdigest() + _END).encode()


def is_sealed(raw: bytes) -> bool:
    """Whether a report is as it was written."""
    seal = _SEALED.search(raw)
    if seal is None:
        return False
    whole = hashlib.sha256(raw[: seal.start(1)] + UNSEALED.encode() + raw[seal.end(1) :])
    return whole.hexdigest() == seal[1].decode()
