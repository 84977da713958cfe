"""A checkpoint as a value: its documents, its tensors by their names on disk, and what else lies beside them."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.documents import TOKENIZER, Documents, read_document
from graftkit.checkpoint.files import resolve_member
from graftkit.checkpoint.inventory import inventory
from graftkit.checkpoint.location import Location, locate
from graftkit.checkpoint.stamps import Stamps, stamps_of
from graftkit.checkpoint.trust import check_config, check_root, check_sizes, quantization, remote_code
from graftkit.checkpoint.value_head import FILE, read_value_head
from graftkit.checkpoint.weights import SINGLE, Weights, read_weights
from graftkit.errors import InputRejected, StorageFault, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from graftkit.checkpoint.hub.file import HubFile
    from graftkit.checkpoint.tensors import LazyTensor


@dataclass(frozen=True, slots=True)
class Brought:
    """A file of another folder: a document with its ``value``, or one that comes along byte for byte, whose value is None."""

    directory: Path
    value: object = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is opened from a folder or derived from an opened one; no weight is held in memory.

    Attributes:
        name: what was asked for, a folder or a hub id.
        directory: the folder of the source's files.
        revision: the commit, if the files came from the hub.
        tensors: by name on disk, in the order of the shards and of the data in each.
        shards: file name of each weight file, and the names of its tensors in the order of their data.
        shard_metadata: the ``__metadata__`` of each weight file.
        index: model.safetensors.index.json as read, or None for a single file.
        documents: by relative path, the value of a JSON file or the text of another: what operations may edit; tokenizer.json
            is read, and refused if malformed, when it is first asked for.
        carried: relative paths of the other files that come along byte for byte.
        left_behind: relative paths of what does not come along, each with the reason.
        remote_code: one line for each ``auto_map`` of a document, code of the checkpoint that is not run.
        notes: one line for each thing that is worth reporting and no error, such as a quantization config.
        stamps: what the source's files were when it was opened.
        brought: documents and carried files that lie in another folder, by relative path; a document only while it has the same value.
        in_memory: whether a model in memory holds the tensors, so that the folder has documents alone.
        on_hub: by relative path, the weight files that lay on the hub alone when it was opened.
        value_head: the tensors of value_head.safetensors, which trainers read beside the model; none has the name of one of the model.
    """

    name: str
    directory: Path
    revision: str | None
    tensors: Mapping[str, LazyTensor]
    shards: Mapping[str, tuple[str, ...]]
    shard_metadata: Mapping[str, Mapping[str, str]]
    index: Mapping[str, Any] | None
    documents: Mapping[str, Any]
    carried: tuple[str, ...]
    left_behind: Mapping[str, str]
    remote_code: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stamps: Stamps = field(default_factory=dict, compare=False)
    brought: Mapping[str, Brought] = field(default_factory=dict)
    in_memory: bool = False
    on_hub: Mapping[str, HubFile] = field(default_factory=dict, compare=False)
    value_head: Mapping[str, LazyTensor] = field(default_factory=dict)

    @classmethod
    def open(
        cls, base_model: str | os.PathLike[str], *, revision: str | None = None, weights: bool = True,
        read: Callable[..., Weights[LazyTensor]] = read_weights,
    ) -> Checkpoint:  # fmt: skip
        """Open the local folder or hub repository ``base_model``: headers, index, config and tokenizer files are read.

        Without ``weights`` those that lie on the hub alone stay there, and only their headers are transferred, until
        :func:`~graftkit.checkpoint.weights_on_hub.download_weights` is called. ``read`` finds the weights in a folder with a config.

        Raises:
            RecipeError: a local folder is given with a revision.
            InputRejected: there is no such checkpoint, or it is malformed, unsafe, or has no safetensors weights.
            StorageFault: reading or downloading failed.
        """
        base_model = os.fspath(base_model)
        location = locate(base_model, revision, weights=weights)
        read = functools.partial(read, on_hub=location.on_hub) if location.on_hub else read
        try:
            return cls._open(location, read)
        except InputRejected as error:
            raise InputRejected(f"{printable(base_model)}: {error}") from error
        except OSError as error:
            raise StorageFault(f"{printable(base_model)}: cannot be read: {error.strerror or error}") from error

    @classmethod
    def of_model(cls, name: str, directory: Path, tensors: Mapping[str, LazyTensor]) -> Checkpoint:
        """The checkpoint of a model in memory: its documents lie in ``directory``, its ``tensors`` are by their names on disk.

        Raises:
            InputRejected: a document is malformed or unsafe.
        """
        weights: Weights[LazyTensor] = Weights(tensors, {SINGLE: tuple(tensors)}, {SINGLE: {"format": "pt"}}, None, {})
        opened = cls._open(Location(name, directory, None), lambda *_: weights, in_memory=True)
        dict(opened.documents)  # the folder may go before this checkpoint does
        return opened

    @classmethod
    def _open(
        cls, location: Location, read_from: Callable[..., Weights[LazyTensor]], *, in_memory: bool = False
    ) -> Checkpoint:
        """Open a folder, with the weights that ``read_from`` finds for it."""
        directory = location.directory.resolve()
        stamps = stamps_of(directory)
        check_root(directory)
        config = check_config(read_document(directory, "config.json"))
        weights = read_from(directory, config)
        check_sizes(config, len(weights.tensors))
        value_head = read_value_head(directory, weights.tensors, location.on_hub)
        beside = (FILE,) if value_head else ()
        names, carried, left_behind = inventory(directory, weights.shards, weights.superseded, location.on_hub, beside)
        small = [name for name in names if name != TOKENIZER]
        known = {name: config if name == "config.json" else read_document(directory, name) for name in small}
        if TOKENIZER in names:
            resolve_member(directory, TOKENIZER)

        def read(name: str) -> object:
            try:
                return read_document(directory, name)
            except InputRejected as error:
                raise InputRejected(f"{printable(location.name)}: {error}") from error

        return cls(
            name=location.name,
            directory=directory,
            revision=location.revision,
            tensors=MappingProxyType(dict(weights.tensors)),
            shards=MappingProxyType(dict(weights.shards)),
            shard_metadata=MappingProxyType(dict(weights.metadata)),
            index=weights.index,
            documents=Documents(names, known, read),
            carried=carried,
            left_behind=MappingProxyType(left_behind),
            remote_code=remote_code(known),
            notes=quantization(config),
            stamps=stamps,
            in_memory=in_memory,
            on_hub=location.on_hub,
            value_head=MappingProxyType(dict(value_head.tensors if value_head else {})),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The value of config.json, which is not to be changed in place."""
        config: dict[str, Any] = self.documents["config.json"]
        return config

    @property
    def all_tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors of the model and those of the value head beside it."""
        return {**self.tensors, **self.value_head} if self.value_head else self.tensors

    @property
    def files(self) -> Mapping[str, tuple[str, ...]]:
        """File name of each shard and of the value head, and the names of the tensors in it."""
        return {**self.shards, FILE: tuple(self.value_head)} if self.value_head else self.shards

    @property
    def loads_from_files(self) -> bool:
        """Whether transformers loads the files that the tensors lie in; else a model is put together from the tensors."""
        return all(shard.endswith((".safetensors", ".bin")) for shard in self.shards)

    def path_of(self, relative: str) -> Path:
        """Return the real path of a source file, every link resolved: in the hub's cache a snapshot holds only links.

        Raises:
            InputRejected: it is not there any more, or not a file of this checkpoint.
            StorageFault: the file system failed.
        """
        return resolve_member(self.folder_of(relative) or self.directory, relative)

    def folder_of(self, relative: str) -> Path | None:
        """The other folder that a file was brought from; None for the source's own, and for a document that changed since."""
        found = self.brought.get(relative)
        if found is None or (relative in self.documents and self.documents[relative] is not found.value):
            return None
        return found.directory

    def with_documents(self, changes: Mapping[str, Any]) -> Checkpoint:
        """Return this checkpoint with documents added or replaced, by relative path; None removes one.

        A document that is not named stays the identical object, so that a writer can tell what was not touched.
        """
        documents = {**self.documents, **changes}
        kept = {name: value for name, value in documents.items() if value is not None}
        carried = tuple(path for path in self.carried if path not in changes)
        return replace(self, documents=MappingProxyType(kept), carried=carried)

    def with_brought(self, directory: Path, documents: Mapping[str, Any], carried: Iterable[str]) -> Checkpoint:
        """Return this checkpoint with files of the folder ``directory``, documents with their values and others by relative path."""
        others = tuple(carried)
        brought = {name: Brought(directory, value) for name, value in documents.items()}
        brought |= {path: Brought(directory) for path in others}
        changed = self.with_documents(documents)
        kept = tuple(path for path in changed.carried if path not in others)
        return replace(changed, carried=(*kept, *others), brought=MappingProxyType({**self.brought, **brought}))

    def with_tensors(self, changes: Mapping[str, LazyTensor | None], *, shard: str | None = None) -> Checkpoint:
        """Return this checkpoint with tensors replaced, added or dropped, by name on disk; None drops one.

        A replaced tensor keeps its shard and its place, a new one goes to the end of ``shard``, by default the last.
        A shard without tensors disappears.

        Raises:
            KeyError: a tensor to drop, or ``shard``, does not exist.
        """
        dropped = {name for name, tensor in changes.items() if tensor is None}
        unknown = sorted(dropped - self.tensors.keys())
        target = list(self.shards)[-1] if shard is None else shard
        if unknown or target not in self.shards:
            raise KeyError(unknown[0] if unknown else target)
        added = tuple(name for name, tensor in changes.items() if tensor is not None and name not in self.tensors)
        shards = {
            file: tuple(name for name in names if name not in dropped) + (added if file == target else ())
            for file, names in self.shards.items()
        }
        shards = {file: names for file, names in shards.items() if names}
        current = {**self.tensors, **changes}
        tensors = {name: tensor for names in shards.values() for name in names if (tensor := current[name]) is not None}
        metadata = {file: self.shard_metadata[file] for file in shards}
        return replace(
            self,
            tensors=MappingProxyType(tensors),
            shards=MappingProxyType(shards),
            shard_metadata=MappingProxyType(metadata),
        )

    def with_value_head(self, tensors: Mapping[str, LazyTensor]) -> Checkpoint:
        """Return this checkpoint with another value head beside its model, or with none."""
        return replace(self, value_head=MappingProxyType(dict(tensors)))

    def with_files(self, files: Mapping[str, str], metadata: Mapping[str, str]) -> Checkpoint:
        """Return this checkpoint with its weight files called otherwise, old name to new; several get an index of their own."""
        shards = {files[file]: names for file, names in self.shards.items()}
        return replace(
            self,
            shards=MappingProxyType(shards),
            shard_metadata=MappingProxyType(dict.fromkeys(shards, metadata)),
            index={"metadata": {"total_size": 0}} if len(shards) > 1 else None,
        )

    def with_names(self, names: Mapping[str, str]) -> Checkpoint:
        """Return this checkpoint with tensors renamed, old name to new, each in its shard and its place.

        Raises:
            KeyError: a tensor to rename does not exist, or two would share a name.
        """
        renamed = {names.get(name, name): tensor for name, tensor in self.tensors.items()}
        if len(renamed) != len(self.tensors) or not names.keys() <= self.tensors.keys():
            raise KeyError(next(iter(names.keys() - self.tensors.keys()), "a name is given twice"))
        shards = {file: tuple(names.get(name, name) for name in held) for file, held in self.shards.items()}
        return replace(self, tensors=MappingProxyType(renamed), shards=MappingProxyType(shards))
