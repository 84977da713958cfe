"""The report as a manifest: every byte of an output stands in it, and a folder is held against the report beside it.

A weight file is its header, by digest, and its tensors, whose digests the ledger holds; every other file has one digest.
The report's own digest is its last value, over its own bytes with zeros in the digest's place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graftkit.architecture.correspondence import Correspondence
from graftkit.checkpoint.adapter import FOLDER
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.documents import encode_json, read_report
from graftkit.checkpoint.files import is_plain_relative
from graftkit.checkpoint.inventory import OWN
from graftkit.checkpoint.safetensors_header import read_header
from graftkit.checkpoint.tensors import Stored
from graftkit.checkpoint.tokenizer import Renamed
from graftkit.checkpoint.value_head import FILE as VALUE_HEAD
from graftkit.checkpoint.write import INDEX
from graftkit.errors import InputRejected, few, printable
from graftkit.report.json_text import json_text
from graftkit.report.page import PAGE, REPORT, render_page
from graftkit.report.seal import SEAL, UNSEALED, is_sealed, sealed
from graftkit.verification.accounted import Accounted
from graftkit.verification.digests import tensor_digests

_PIECE = 8 << 20


def file_digests(directory: Path, weights: Collection[str]) -> list[dict[str, Any]]:
    """What stands in the report of each file below ``directory``; of the weight files named, their headers."""
    names = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return [_entry(directory, name, header=name in weights) for name in names if name not in (REPORT, PAGE)]


def _entry(directory: Path, name: str, *, header: bool) -> dict[str, Any]:
    path = directory / name
    if not header:
        return {"name": name, "covers": "file", "bytes": path.stat().st_size, "sha256": _digest(path)}
    found = read_header(path.resolve(), shown=name)
    digest = _digest(path, found.data_start)
    return {
        "name": name, "covers": "header", "bytes": found.data_start, "sha256": digest, "metadata": dict(found.metadata)
    }  # fmt: skip


def _digest(path: Path, nbytes: int | None = None) -> str:
    found, left = hashlib.sha256(), nbytes
    with path.open("rb") as file:
        while piece := file.read(_PIECE if left is None else min(_PIECE, left)):
            found.update(piece)
            left = None if left is None else left - len(piece)
    return found.hexdigest()


def write_manifest(report: Mapping[str, Any], directory: Path) -> None:
    """Write the report with the digests of all files that lie in ``directory``, its page, and its own digest last."""
    shards = {str(entry["shard"]) for entry in report["ledger"]}
    plain = json.loads(json_text({**report, "files": file_digests(directory, shards)}))
    page = render_page(plain).encode("utf-8", "backslashreplace")
    plain["files"].append(
        {"name": PAGE, "covers": "file", "bytes": len(page), "sha256": hashlib.sha256(page).hexdigest()}
    )
    (directory / REPORT).write_bytes(sealed(encode_json(json_text({**plain, SEAL: UNSEALED}) + "\n")))
    (directory / PAGE).write_bytes(page)


def account_for(checkpoint: Checkpoint) -> Accounted | None:
    """Hold every byte of a checkpoint's folder against the report that lies in it; None where none does.

    Raises:
        StorageFault: the file system failed.
    """
    path = checkpoint.directory / REPORT
    if not path.is_file():
        return None
    raw = path.read_bytes()
    if not is_sealed(raw):
        return _unused(f"{REPORT} is not the one that was written: its own digest, its last value, does not fit it")
    try:
        return _account_for(checkpoint, json.loads(raw))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        return _unused(f"{REPORT} cannot be read as a report: {type(error).__name__} {printable(error)}")


def changed_files(directory: Path) -> list[str]:
    """The files of a folder that are not those of the report beside them, as far as they can be told without opening a checkpoint.

    Of a weight file only the header counts. Empty where no report lies there that can be read.
    """
    try:
        report: Any = read_report(directory, REPORT)
        entries = [entry for entry in report["files"] if is_plain_relative(entry["name"])]
        return [str(entry["name"]) for entry in entries if not _is_as_written(directory / entry["name"], entry)]
    except (InputRejected, KeyError, TypeError, ValueError, AttributeError):
        return []


def _is_as_written(path: Path, entry: Mapping[str, Any]) -> bool:
    nbytes = entry["bytes"] if entry["covers"] == "header" else None
    return path.is_file() and _digest(path, nbytes) == entry["sha256"]


def _unused(what: str) -> Accounted:
    return Accounted((f"report: {what}; move it away to verify without it",), figure="not used")


def _account_for(checkpoint: Checkpoint, report: Mapping[str, Any]) -> Accounted:
    ledger = {str(entry["name"]): entry for entry in report["ledger"] if not _is_beside(entry["shard"])}
    digests = tensor_digests(checkpoint.tensors)
    found = {name: (tensor.dtype, tensor.shape, digests[name]) for name, tensor in checkpoint.tensors.items()}
    reported = {name: (entry["dtype"], tuple(entry["shape"]), entry["sha256"]) for name, entry in ledger.items()}
    unlike = [name for name in dict.fromkeys([*reported, *found]) if found.get(name) != reported.get(name)]
    if 2 * len(unlike) > len(reported):
        return _unused(
            f"the {REPORT} beside B is not this folder's: {len(unlike)} tensors are not among the {len(reported)} that it lists"
        )
    failures = [f"report: tensor {printable(name)!r} {_unlike(name, found, reported)}" for name in unlike]
    files = {str(entry["name"]): entry for entry in report["files"]}
    if stranger := next((name for name in files if not is_plain_relative(name)), None):
        raise ValueError(f"{stranger!r} is no file of this folder")
    again = checkpoint.shards != _layout(ledger)
    failures += _changed_headers(checkpoint, files, again=again)
    failures += _changed_files(checkpoint, report, files, again=again)
    written = frozenset(name for name in reported if name not in unlike)
    notes = ("written again: the same tensors in other files",) if again and not failures else ()
    figure = f"{len(written)} of {len(reported)} tensors and {len(files)} files"
    if failures:
        return Accounted(tuple(failures), notes, written, f"{figure}: {len(failures)} not as written")
    return Accounted(
        (), notes, written, f"{figure} as written",
        dict(report["promise"]),
        frozenset(_changed_names(report["changes"]["tensors"])),
        frozenset((str(item["document"]), str(item["place"])) for item in report["changes"]["values"]),
        {str(old): Renamed(str(now["content"]), bool(now["special"])) for old, now in report.get("renamed_tokens", {}).items()},
        Correspondence.from_json(report.get("correspondence") or {}),
    )  # fmt: skip


def _changed_names(changes: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the names of the source under which the result has another tensor, or none."""
    for item in changes:
        if item["kind"] not in ("patched", "trimmed"):
            yield str(item["name"])
        if item["kind"] in ("renamed", "moved"):
            yield str(item["old_name"])


def _is_beside(file: str) -> bool:
    """Whether a weight file is not the model's: an adapter's, or the value head."""
    return file == VALUE_HEAD or file.startswith(f"{FOLDER}/")


def _unlike(name: str, found: Mapping[str, Any], reported: Mapping[str, Any]) -> str:
    if name not in found:
        return "was written and is gone"
    return "is not what was written: its SHA-256 differs" if name in reported else "was not written by that run"


def _layout(ledger: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    shards: dict[str, list[str]] = {}
    for name, entry in ledger.items():
        shards.setdefault(str(entry["shard"]), []).append(name)
    return {shard: tuple(names) for shard, names in shards.items()}


def _changed_headers(checkpoint: Checkpoint, files: Mapping[str, Any], *, again: bool) -> Iterator[str]:
    """Yield a sentence for each weight file with another header; of those written ``again``, with metadata of none."""
    metadata = [entry["metadata"] for entry in files.values() if entry["covers"] == "header"]
    for shard, found in checkpoint.shard_metadata.items():
        if dict(found) not in ([files[shard]["metadata"]] if not again else metadata):
            yield f"report: {printable(shard)}: its __metadata__ is not what was written: {printable(dict(sorted(found.items())))}"
        elif not again and _digest(checkpoint.path_of(shard), files[shard]["bytes"]) != files[shard]["sha256"]:
            yield f"report: {printable(shard)}: its header is not the one that was written"


def _changed_files(
    checkpoint: Checkpoint, report: Mapping[str, Any], files: Mapping[str, Any], *, again: bool
) -> Iterator[str]:
    """Yield a sentence for each file but the weights that is not the one that was written, is gone, or was not there.

    Where the tensors stand in other files (``again``), their index is another.
    """
    for name, entry in files.items():
        path = checkpoint.directory / name
        if (entry["covers"] == "header" and not _is_beside(name)) or (again and name == INDEX):
            continue
        if not path.is_file():
            yield f"report: {printable(name)} was written and is gone"
        elif entry["covers"] == "header":
            yield from _changed_beside(path, entry, report["ledger"])
        elif _digest(path) != entry["sha256"] and not (name == PAGE and _is_page(path, report)):
            yield f"report: {printable(name)} is not the file that was written"
    known = {*files, *OWN, *checkpoint.shards, INDEX}
    for name in (*checkpoint.documents, *checkpoint.carried, *checkpoint.files):
        if name not in known:
            yield f"report: {printable(name)} was not written by that run; remove it"


def _changed_beside(path: Path, entry: Mapping[str, Any], ledger: Collection[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a sentence where header or tensors of a weight file beside the model's are not those that were written."""
    name = str(entry["name"])
    try:
        tensors: Mapping[str, Stored] = read_header(path.resolve(), shown=name).tensors
    except InputRejected as error:
        yield f"report: {error}"
        return
    if _digest(path, entry["bytes"]) != entry["sha256"]:
        yield f"report: {printable(name)}: its header is not the one that was written"
    wanted = {str(item["name"]): item["sha256"] for item in ledger if item["shard"] == name}
    digests = tensor_digests(tensors)
    unlike = [tensor for tensor in {*wanted, *digests} if wanted.get(tensor) != digests.get(tensor)]
    if unlike:
        yield f"report: {printable(name)}: tensors are not what was written: {few(unlike)}"


def _is_page(path: Path, report: Mapping[str, Any]) -> bool:
    """Whether it is the page that `graftkit report` makes of the report today."""
    try:
        return path.read_bytes() == render_page(report).encode("utf-8", "backslashreplace")
    except InputRejected:
        return False
