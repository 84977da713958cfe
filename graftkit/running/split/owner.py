"""A rank that owns blocks: it loads them and runs them, as rank 0 asks, and computes what rank 0 asks of tensors that are here."""

from __future__ import annotations

import contextlib
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from graftkit.checkpoint.visible import wait_for_files
from graftkit.errors import GraftkitError, StorageFault
from graftkit.running.forward import release
from graftkit.running.paging.origin import READ
from graftkit.running.split.dual import pushed
from graftkit.running.split.graph import Graph
from graftkit.running.split.interrupts import CannotSplit
from graftkit.running.split.parcels import Shelf, pack, raw_of, tensors_in, unpack
from graftkit.running.split.parts import Part, Refused, load_part
from graftkit.running.split.remote_tensor import Handle, Held, SentBefore, replaced
from graftkit.running.split.state import Setting, settle
from graftkit.running.split.surroundings import Surroundings, surrounded
from graftkit.running.split.watching import Call, Watched, calls_of

if TYPE_CHECKING:
    from torch import Tensor

    from graftkit.running.split.line import Line

#: What rank 0 asks for.
HOST, LOAD, RUN, FIGURES, END = "host", "load", "run", "figures", "end"
PARAMETER, PUSH, PULL, COMPUTE, FETCH, RELEASE = "parameter", "push", "pull", "compute", "fetch", "release"
PARAMETERS = "parameters"


class Given(NamedTuple):
    """A parameter that a block is to be run with: the module in it, the key there, what lies under the ``number``, or a pair of them.

    ``graded`` says whether a gradient is asked of it.
    """

    module: str
    key: str
    number: Any
    graded: bool


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
    """Holds the blocks that rank ``rank`` of ``count`` owns of the models that were loaded, by their numbers."""

    def __init__(self, rank: int, count: int) -> None:
        self._rank, self._count = rank, count
        self._shelf = Shelf()
        self._parts: dict[int, Part] = {}
        self._held = Held()
        self._known: dict[int, Any] = {}
        self._before, self._seconds = READ.nbytes, 0.0

    def answer(self, message: bytes) -> bytes | None:
        """What rank 0 is told; None when it has asked for the last time."""
        since = time.process_time()
        try:
            return self._answer(message)
        finally:
            self._seconds += time.process_time() - since

    def _answer(self, message: bytes) -> bytes | None:
        (forgotten, what, *about), tensors = self._unpacked(message)
        self._held.forget(forgotten)
        if what == RUN:
            return self._run(message, *about, given=tensors)
        if what == END:
            return None
        answers: dict[str, Callable[..., Any]] = {
            HOST: socket.gethostname,
            LOAD: self._load,
            FIGURES: lambda: (READ.nbytes - self._before, self._seconds),
            PARAMETER: self._parameter,
            COMPUTE: self._compute,
            PARAMETERS: self._parameters,
            PULL: self._pull,
            PUSH: self._push,
            FETCH: lambda number: self._held[number].detach(),
            RELEASE: self._release,
        }
        answer, _ = pack(answers[what](*about), self._shelf, owner=True)
        self._shelf.trim()
        return answer

    def _load(
        self, number: int, beside: Sequence[int], directory: str, files: dict[str, int], options: dict[str, Any]
    ) -> tuple[str, Any]:
        """Load a part as that of model ``number``; ``("loaded", whether it is paged)``, or what was raised."""
        self._release(beside)
        wait_for_files(Path(directory), files)
        try:
            self._parts[number] = load_part(Path(directory), self._rank, self._count, **options)
        except StorageFault:
            raise
        except GraftkitError as error:
            return "failed", error
        except CannotSplit as error:
            return "cannot", str(error)
        return "loaded", self._parts[number].paged

    def _release(self, beside: Sequence[int]) -> None:
        """Let go all models but those ``beside`` which the next is loaded."""
        for number in self._parts.keys() - set(beside):
            release(self._parts.pop(number).loaded.model)
        if not beside:
            self._known.clear()

    def _block(self, number: int, path: str) -> nn.Module:
        if number not in self._parts:
            raise ValueError(f"model {number} was not loaded, or is let go")
        block: nn.Module = self._parts[number].loaded.model.get_submodule(path)
        return block

    def _parameter(self, number: int, path: str, key: str) -> Handle:
        return self._held.tell(self._block(number, path)._parameters[key])  # type: ignore[arg-type]  # noqa: SLF001 - it may be paged in

    def _parameters(self, number: int) -> dict[str, dict[str, tuple[Handle, bool]]]:
        """What is to be trained of a model here, by module and key, and whether it is."""
        part = self._parts[number]
        return {
            name: {
                key: (self._held.tell(value), value.requires_grad)
                for key, value in module._parameters.items()  # noqa: SLF001 - without what several share left out
                if value is not None
            }
            for name, module in part.loaded.model.named_modules()
            if not isinstance(module._parameters, Refused)  # noqa: SLF001
        }

    def _pull(self, number: int, gradients: Sequence[Tensor | None]) -> tuple[str, Any]:
        """``("found", the gradients)`` of what a block was given, from those of what it gave; or what was raised."""
        try:
            graph, given = self._held[number]
            found = graph.pull(gradients)
            stay = [[one if one is None else self._held.tell(one) for one in each] for each in found[given:]]
            return "found", [one for each in (*found[:given], *stay) for one in each]
        except (GraftkitError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - rank 0 says so
            return "raised", _sendable(error)

    def _push(
        self, number: int, path: str, args: Any, kwargs: Any, settings: list[Setting], surroundings: Surroundings, state: Tensor,
        parameters: Sequence[Given], watched: Sequence[Watched],
    ) -> tuple[str, Any]:  # fmt: skip
        """``("found", what a block gives with its tangents, and the calls of watched modules)``; or what was raised."""
        block = self._block(number, path)
        settle(block, settings)

        def run(given: tuple[Any, Any, Any]) -> Any:
            args, kwargs, held = given
            with put_into(block, parameters, held), calls_of(block, watched, copies=False) as kept:
                return block.forward(*args, **kwargs), [tuple(call) for call in kept.calls]

        held = [replaced(one.number, int, self._held.__getitem__) for one in parameters]
        try:
            with torch.random.fork_rng(devices=[]), surrounded(block, surroundings):
                torch.default_generator.set_state(state)
                return "found", pushed(run, (args, kwargs, held))
        except (GraftkitError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - rank 0 says so
            return "raised", _sendable(error)
        except CannotSplit as error:
            return "cannot", str(error)

    def _unpacked(self, message: bytes) -> tuple[Any, list[Tensor]]:
        """What rank 0 says, and the tensors in it; those that belong to a graph there are leaves of one here."""
        return unpack(
            message, self._shelf, owner=True, link=lambda tensors, _: [one.requires_grad_() for one in tensors]
        )

    def _compute(
        self, function: Callable[..., Any] | str, args: Any, kwargs: Mapping[str, Any], known: Mapping[int, Any]
    ) -> tuple[str, Any]:
        """``("found", what a function gives, or an operator of torch by its name)``, whose tensors stay here, or what was raised."""
        self._known.update(known)
        args, kwargs = (
            replaced(
                replaced(given, Handle, lambda handle: self._held[handle.number]),
                SentBefore,
                lambda one: self._known[one.number],
            )
            for given in (args, kwargs)
        )
        try:
            with torch.no_grad():
                found = (operator_of(function) if isinstance(function, str) else function)(*args, **kwargs)
        except (GraftkitError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it raises is raised again where it was asked for
            return "raised", _sendable(error)
        return "found", replaced(found, torch.Tensor, self._held.tell)

    def _run(
        self,
        message: bytes,
        number: int,
        path: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        settings: list[Setting],
        surroundings: Surroundings,
        state: Tensor,
        parameters: Sequence[Given],
        watched: Sequence[Watched],
        *,
        given: list[Tensor],
    ) -> bytes:
        """Run one block, with other ``parameters`` if there are any; calls of ``watched`` modules in it are told, too."""
        block = self._block(number, path)
        settle(block, settings)
        leaves = {one.number: nn.Parameter(self._held[one.number].detach(), one.graded) for one in parameters}
        before = [raw_of(tensor.detach()).clone() for tensor in given]
        try:
            for copies in (False, True):
                with (
                    torch.random.fork_rng(devices=[]),
                    put_into(block, parameters, [leaves[one.number] for one in parameters]),
                    surrounded(block, surroundings) as told,
                    calls_of(block, watched, copies=copies) as kept,
                ):
                    torch.default_generator.set_state(state)
                    output = block.forward(*args, **kwargs)
                    after = torch.default_generator.get_state()
                if not kept.changed:
                    break
                (_, _, _, _, args, kwargs, *_), given = self._unpacked(message)  # as it was before
            now = [tensor.detach() for tensor in given]
            changed = {n: tensor.clone() for n, tensor in enumerate(now) if not raw_of(tensor).equal(before[n])}
            calls = self._shown(kept.calls, watched, tensors_in((output, args, kwargs)))
            found = ("ran", output, args, kwargs, calls, None if after.equal(state) else after, changed, told())
            graph = self._graph(surroundings, found, given, [one for one in leaves.values() if one.requires_grad])
            answer, _ = pack(found, self._shelf, given, owner=True, graph=graph)
        except (GraftkitError, OSError):  # the disk's or the system's, and this rank says so
            raise
        except Exception as error:  # noqa: BLE001 - whatever a forward raises is raised again where the model is run
            answer, _ = pack(("raised", _sendable(error)), self._shelf, owner=True)
        except CannotSplit as error:
            answer, _ = pack(("cannot", str(error)), self._shelf, owner=True)
        self._shelf.trim()
        return answer

    def _graph(
        self, surroundings: Surroundings, found: Any, given: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> tuple[Any, ...] | None:
        """The number of the graph that was made, if one is, and how often it uses each tensor that it was given, and each parameter."""
        if not surroundings.graph:
            return None
        before = {id(tensor) for tensor in given}
        gave = [tensor for tensor in tensors_in(found) if tensor.requires_grad and id(tensor) not in before]
        leaves = [tensor for tensor in given if tensor.requires_grad]
        graph = Graph([*leaves, *parameters], gave)
        return self._held.keep((graph, len(leaves))), graph.uses

    def _shown(self, calls: Sequence[Call], watched: Sequence[Watched], sent: Sequence[Tensor]) -> list[Call]:
        """The calls as rank 0 is told of them: what goes there anyhow goes, and what need not stays here."""
        stay = {one.name for one in watched if not one.whole}
        going = {id(tensor) for tensor in sent}

        def shown(tensor: Tensor) -> Tensor | Handle:
            return tensor if id(tensor) in going else self._held.tell(tensor)

        return [
            call._replace(output=replaced(call.output, torch.Tensor, shown)) if call.name in stay else call
            for call in calls
        ]


@contextlib.contextmanager
def put_into(block: nn.Module, parameters: Sequence[Given], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let a block have these tensors as its parameters inside."""
    places: list[tuple[dict[str, Any], str]] = [
        (block.get_submodule(one.module)._parameters, one.key)  # noqa: SLF001 - where modules look
        for one in parameters
    ]
    before = [held[key] for held, key in places]
    for (held, key), tensor in zip(places, tensors, strict=True):
        held[key] = tensor
    try:
        yield
    finally:
        for (held, key), tensor in zip(places, before, strict=True):
            held[key] = tensor


def operator_of(name: str) -> Callable[..., Any]:
    """The operator of torch that is called so, such as ``aten::add.Tensor``."""
    space, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
    return found


def _sendable(error: Exception) -> Exception:
    """The error itself where it survives being sent, else one with its words."""
    try:
        same = pickle.loads(pickle.dumps(error))  # noqa: S301 - what this line has just made
    except Exception:  # noqa: BLE001 - an error may be pickled in any way
        return RuntimeError(str(error))
    return error if type(same) is type(error) and str(same) == str(error) else RuntimeError(str(error))
