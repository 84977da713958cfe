"""A rank that owns blocks: it loads them and runs them, as rank 0 asks."""

from __future__ import annotations

import contextlib
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from graftkit.checkpoint.visible import wait_for_files
from graftkit.errors import GraftkitError, StorageFault
from graftkit.running.forward import release
from graftkit.running.paging.origin import READ
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.parcels import Shelf, pack, raw_of, unpack
from graftkit.running.split.parts import Part, load_part

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graftkit.running.split.line import Line

#: What rank 0 asks for.
HOST, LOAD, RUN, FIGURES, END = "host", "load", "run", "figures", "end"


def own_blocks(line: Line) -> None:
    """Answer rank 0 until it needs no more.

    Raises:
        StorageFault: a file cannot be read here.
        GraftkitError: another rank ended.
    """
    owner = BlockOwner(line.rank, line.count)
    while (answer := owner.answer(line.receive(0))) is not None:
        line.send(0, answer)


class BlockOwner:
    """Holds the blocks that rank ``rank`` of ``count`` owns of the model that was loaded last."""

    def __init__(self, rank: int, count: int) -> None:
        self._rank, self._count = rank, count
        self._shelf = Shelf()
        self._part: Part | None = None
        self._before = READ.nbytes

    def answer(self, message: bytes) -> bytes | None:
        """What rank 0 is told; None when it has asked for the last time."""
        (what, *about), tensors = unpack(message, self._shelf, owner=True)
        if what == RUN:
            return self._run(*about, given=tensors)
        if what == END:
            return None
        answers: dict[str, Callable[..., Any]] = {
            HOST: socket.gethostname,
            LOAD: self._load,
            FIGURES: lambda: READ.nbytes - self._before,
        }
        answer, _ = pack(answers[what](*about), self._shelf, owner=True)
        self._shelf.trim()
        return answer

    def _load(self, directory: str, files: dict[str, int], options: dict[str, Any]) -> tuple[str, Any]:
        """Load a part; ``("loaded", whether it is paged)``, or what was raised."""
        if self._part is not None:
            release(self._part.loaded.model)
            self._part = None
        wait_for_files(Path(directory), files)
        try:
            self._part = load_part(Path(directory), self._rank, self._count, **options)
        except StorageFault:
            raise
        except GraftkitError as error:
            return "failed", error
        except CannotSplit as error:
            return "cannot", str(error)
        return "loaded", self._part.paged

    def _run(
        self,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        hooked: Sequence[str],
        state: Tensor,
        *,
        given: list[Tensor],
    ) -> bytes:
        """Run one block; ``hooked`` names the modules in it whose calls rank 0 wants to see too."""
        if self._part is None:
            raise ValueError("no model was loaded")
        block = self._part.loaded.model.get_submodule(path)
        before = [raw_of(tensor).clone() for tensor in given]
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=[]), _calls_of(block, hooked) as calls:
                torch.default_generator.set_state(state)
                output = block.forward(*args, **kwargs)
                after = torch.default_generator.get_state()
            changed = {n: tensor.clone() for n, tensor in enumerate(given) if not raw_of(tensor).equal(before[n])}
            found = ("ran", output, args, kwargs, calls, None if after.equal(state) else after, changed)
            answer, _ = pack(found, self._shelf, given, owner=True)
        except (GraftkitError, OSError):  # the disk's or the system's, and this rank says so
            raise
        except Exception as error:  # noqa: BLE001 - whatever a forward raises is raised again where the model is run
            answer, _ = pack(("raised", _sendable(error)), self._shelf, owner=True)
        except CannotSplit as error:
            answer, _ = pack(("cannot", str(error)), self._shelf, owner=True)
        self._shelf.trim()
        return answer


@contextlib.contextmanager
def _calls_of(block: nn.Module, hooked: Sequence[str]) -> Iterator[list[tuple[str, Any, Any, Any]]]:
    """The calls of these modules inside of a block while it runs: name, arguments and what they gave."""
    calls: list[tuple[str, Any, Any, Any]] = []
    with contextlib.ExitStack() as hooks:
        for name in hooked:

            def note(_: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                calls.append((name, args, kwargs, output))

            hooks.callback(block.get_submodule(name).register_forward_hook(note, with_kwargs=True).remove)
        yield calls


def _sendable(error: Exception) -> Exception:
    """The error itself where it survives being sent, else one with its words."""
    try:
        same = pickle.loads(pickle.dumps(error))  # noqa: S301 - what this line has just made
    except Exception:  # noqa: BLE001 - an error may be pickled in any way
        return RuntimeError(str(error))
    return error if type(same) is type(error) and str(same) == str(error) else RuntimeError(str(error))
