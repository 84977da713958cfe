"""The tensors of a LoRA adapter as lazy tensors: sampled, zero, taken from the base, or made from one of its matrices."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from graftkit.architecture.peft.injection import Entry, Injection, Target
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.computed import TensorGroup, as_bytes, computed
from graftkit.checkpoint.held import is_original
from graftkit.checkpoint.reading import TAGS, Scratch, read_ids, read_tensor, torch_dtype
from graftkit.checkpoint.tensors import FLOATING, Computed, LazyTensor, Zeros
from graftkit.errors import InputRejected, printable
from graftkit.initializers import low_rank
from graftkit.initializers.one_thread import OneThread, begin_thread
from graftkit.initializers.seeding import seed_of
from graftkit.operations.adapters.base import base_tensor
from graftkit.operations.adapters.data_factors import DataFactors
from graftkit.operations.adapters.merge import folded

if TYPE_CHECKING:
    from torch import Tensor

#: Inits whose factors are made from the weight, beside the plain ones that are sampled.
SAMPLED = (True, "gaussian")

#: Roles of entries that take values of the base, whatever the init.
FROM_BASE = ("copy", "tokens", "magnitude")

#: How the inits begin that widen some rows of a weight at a time, and work in little more memory than it takes.
PIECEWISE = ("pissa_niter_", "olora")


@dataclass
class AdapterMaker:
    """Makes each tensor of an adapter on demand, holding at most two matrices of the base at a time.

    ``disk`` maps names in memory to names on disk, without those that are stored in a converted form; ``offset`` asks for the
    factors twice with opposite signs, in which case the targets' ranks are already doubled. ``data`` makes the factors that start
    from examples. One thread, ``_decomposing``, decomposes whole weights: each that does keeps a team and buffers of the linear algebra
    library.
    """

    checkpoint: Checkpoint
    injection: Injection
    disk: Mapping[str, str]
    init: bool | str
    offset: bool
    seed: tuple[int, int]
    data: DataFactors | None = None
    _groups: dict[str, TensorGroup] = field(default_factory=dict)
    _scratch: Scratch = field(default_factory=Scratch)
    _decomposing: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="factors", initializer=begin_thread)
    )

    def tensors(self) -> dict[str, LazyTensor]:
        """The lazy tensor of every name in adapter_model.safetensors.

        Raises:
            InputRejected: an entry needs a tensor of the base that is stored in a converted form.
        """
        for entry in self.injection.entries.values():
            if entry.role in FROM_BASE:
                self.base_tensor(_target(entry).weight if entry.role == "magnitude" else entry.weight)
        return {key: self._tensor(key, entry) for key, entry in self.injection.entries.items()}

    @property
    def reads_weights(self) -> bool:
        """Whether a tensor takes values of the base: what is sampled or zero takes none."""
        return self.init not in SAMPLED or any(entry.role in FROM_BASE for entry in self.injection.entries.values())

    def base_tensor(self, weight: str) -> LazyTensor:
        """The base's tensor of the name in memory ``weight``.

        Raises:
            InputRejected: on disk it has another form.
        """
        return base_tensor("add_lora", self.checkpoint, self.disk, weight)

    def residual(self, target: Target) -> LazyTensor:
        """The weight less scaling·B·A, rounded once to its own dtype."""
        stored = self.base_tensor(target.weight)
        if is_original(stored):
            return folded(stored, lambda: self.factors(target), -target.scaling, transposed=target.transposed)

        def produce() -> memoryview:
            a, b = self.factors(target)
            weight = read_tensor(stored)
            update = target.scaling * (b.double() @ a.double())
            rest = weight.double() - (update.T if target.transposed else update)
            return as_bytes(rest.to(weight.dtype))

        return Computed(stored.dtype, stored.shape, produce)

    def factors(self, target: Target) -> low_rank.Factors:
        """A and B of a target in float32, made once and kept: together they are the adapter."""
        group = self._groups.setdefault(target.weight, TensorGroup(lambda: self._make_in_turn(target)))
        factors: low_rank.Factors = group()
        return factors

    def _make_in_turn(self, target: Target) -> low_rank.Factors:
        piecewise = str(self.init).startswith(PIECEWISE)
        return self._make(target) if piecewise else self._decomposing.submit(self._make, target).result()

    def _make(self, target: Target) -> low_rank.Factors:
        if self.data is not None:
            made = self.data.factors_of(target.module)
        elif self.init == "orthogonal":
            stored = self.base_tensor(target.weight)
            out, width = stored.shape[::-1] if target.transposed else stored.shape
            made = low_rank.orthogonal(out, width, self._rank(target), seed_of(*self.seed, target.weight))
        else:
            made = self._decompose(target)
        return low_rank.offset(made) if self.offset else made

    def _rank(self, target: Target) -> int:
        return target.rank // 2 if self.offset else target.rank

    def _decompose(self, target: Target) -> low_rank.Factors:
        import torch

        weight = self._scratch.read(self.base_tensor(target.weight))
        weight = weight.T if target.transposed else weight
        kind, _, iterations = str(self.init).partition("_niter_")
        rank, seed = self._rank(target), seed_of(*self.seed, target.weight)
        made: low_rank.Factors | None = None
        with contextlib.suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # torch does not list it
            if iterations:
                with OneThread():
                    made = low_rank.pissa_niter(weight, rank, target.scaling, int(iterations), seed)
            else:
                made = low_rank.FROM_WEIGHT[kind](weight, rank, target.scaling)
        if made is None or not all(bool(factor.isfinite().all()) for factor in made):
            bad = weight.numel() - int(weight.isfinite().sum())
            raise InputRejected(
                f"add_lora: init_lora_weights: {self.init}: {printable(target.weight)} cannot be decomposed, {bad:,} of its values"
                " are not finite; repair the checkpoint, or leave the module out"
            )
        return made

    def _tensor(self, key: str, entry: Entry) -> LazyTensor:
        dtype = TAGS[entry.dtype]
        if entry.role == "copy":
            base = self.base_tensor(entry.weight)
            return base if base.dtype == dtype else computed(dtype, base.shape, lambda: read_tensor(base))
        starts_zero = entry.role in ("B", "embedding_A")
        if entry.role == "bias" or (starts_zero and self.init in SAMPLED):
            return Zeros(dtype, entry.shape)
        return computed(dtype, entry.shape, lambda: self._values(key, entry))

    def _values(self, key: str, entry: Entry) -> Tensor:
        if entry.role == "tokens":
            return read_ids(self.base_tensor(entry.weight), entry.rows)
        if entry.role == "magnitude":
            return self._magnitude(entry)
        if self.init in SAMPLED:
            return self._sampled(key, entry)
        return self.factors(_target(entry))[0 if entry.role == "A" else 1]

    def _sampled(self, key: str, entry: Entry) -> Tensor:
        seed = seed_of(*self.seed, key)
        if entry.role == "embedding_B":
            return low_rank.gaussian(entry.shape, seed, 1.0)
        if self.init == "gaussian":
            return low_rank.gaussian(entry.shape, seed, 1 / _target(entry).rank)
        return low_rank.kaiming(entry.shape, seed)

    def _magnitude(self, entry: Entry) -> Tensor:
        """The norms of the weight's rows, in the arithmetic in which peft's forward divides by them: so 1 comes out."""
        import torch

        target = _target(entry)
        weight = read_tensor(self.base_tensor(target.weight)).to(torch_dtype(TAGS[entry.dtype]))
        weight = weight.T if target.transposed or target.module in embeddings(self.injection) else weight
        norms: Tensor = torch.linalg.norm(weight.flatten(1), dim=1)
        zero = (norms == 0).nonzero().flatten().tolist()
        if zero:
            raise InputRejected(
                f"add_lora: use_dora: {printable(target.weight)} has {len(zero)} output(s) of norm zero, the first is"
                f" {zero[0]}; DoRA divides by it and gives NaN: leave {printable(target.module)} out"
            )
        return norms.view(entry.shape)


def _target(entry: Entry) -> Target:
    assert entry.target is not None  # noqa: S101 - by construction: the parts of an update name their target
    return entry.target


def embeddings(injection: Injection) -> frozenset[str]:
    """The targets that are tables: their norms and factors run along the other axis."""
    return frozenset(_target(e).module for e in injection.entries.values() if e.role == "embedding_A")


def unsuitable(
    injection: Injection, disk: Mapping[str, str], checkpoint: Checkpoint, halves: int, init: bool | str
) -> Iterator[str]:
    """Yield a sentence for each target whose weight ``init`` cannot start from; its own rank is the target's divided by ``halves``."""
    tables = embeddings(injection)
    vectors = 2 if init == "lora_ga" else 1  # singular vectors that one rank takes
    for target in injection.targets:
        name = disk.get(target.weight)
        rank = target.rank // halves * vectors
        stored = checkpoint.tensors[name] if name else None
        if target.experts:
            yield f"{target.weight} holds fused experts"
        elif target.module in tables:
            yield f"{target.module} is an embedding"
        elif stored is None or stored.dtype not in FLOATING:
            yield f"{target.weight} is stored in another form (converted or quantized)"
        elif len(stored.shape) != 2:
            yield f"{target.module} is a convolution"
        elif rank > min(stored.shape):
            twice = "twice the rank, " if vectors == 2 else "the rank "
            yield f"{target.module} is {' x '.join(map(str, stored.shape))}, smaller than {twice}{rank}"
