"""What the report of the run that made an adapter says of it, where that lies beside the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.checkpoint.adapter import FOLDER, WEIGHTS
from graftkit.checkpoint.documents import read_report
from graftkit.errors import InputRejected, printable
from graftkit.verification.adapters.check import Residual
from graftkit.verification.digests import BaseDigests
from graftkit.verification.promises import PromiseClass

REPORT = "graft_report.json"


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """The adapter and its base as they were when a run wrote them; ``tensors`` are dtype, shape and SHA-256 by name."""

    path: Path
    strength: PromiseClass
    residual: Residual | None
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]]
    base: BaseDigests


def read_record(directory: Path) -> AdapterRecord | None:
    """Read the report in the adapter's folder or above it; None where there is none, or none of a run that made an adapter.

    Raises:
        InputRejected: it is there and cannot be read.
    """
    path = next((path for path in (directory / REPORT, directory.resolve().parent / REPORT) if path.is_file()), None)
    if path is None:
        return None
    try:
        report: Any = read_report(path.parent, path.name)
        found = report["checks"].get("adapter")
        if found is None:
            return None
        ledger = [entry for entry in report["ledger"] if entry["shard"] == f"{FOLDER}/{WEIGHTS}"]
        return AdapterRecord(
            path,
            PromiseClass[found["strength"].upper()],
            _residual(found["residual"]),
            {name: _of_kind(report["source"][name], str | None) for name in ("name", "revision")},
            dict(report["adapter"]["config"]),
            {str(entry["name"]): (entry["dtype"], tuple(entry["shape"]), entry["sha256"]) for entry in ledger},
            BaseDigests(
                _of_kind(found["base"]["config"], str),
                _of_kind(found["base"]["tensors"], str),
                {name: _of_kind(digest, str) for name, digest in _of_kind(found["base"]["weights"], dict).items()},
            ),
        )
    except (InputRejected, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputRejected(
            f"{printable(path)}: is damaged ({type(error).__name__}: {printable(error)}); move it away to verify the"
            " adapter without it"
        ) from error


def _of_kind(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where it writes another type")
    return value


def _residual(found: Mapping[str, Any] | None) -> Residual | None:
    if found is None:
        return None
    correspondence = Correspondence.from_json(found["correspondence"])
    return Residual(correspondence, _of_kind(found["backbone"], bool), _of_kind(found["from_source"], bool))
