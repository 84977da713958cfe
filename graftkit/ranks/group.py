"""How ranks hear of one another: messages, signs of life, and who ended first; gloo gathers what they found.

Nobody waits blindly. A rank that waits looks at the store of torch.distributed again and again, so that a signal reaches it. Rank 0
looks whether all others live, and these whether it does. The first rank that ends says so, and its exit code is that of all.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from graftkit.checkpoint.signals import STOPPING
from graftkit.errors import GraftkitError, StorageFault
from graftkit.ranks.place import RankPlace

#: Seconds within which all ranks must have come, and after which one that gave no sign of life is taken for dead.
MEETING, SILENCE = 300.0, 60.0

#: Seconds that one transfer between ranks may take, all of which are there when it begins.
TRANSFER = 60.0

#: What is said where the connection is lost.
NO_ANSWER = "the other ranks do not answer any more; nothing was written"

#: Bytes up to which a message goes through the store, which takes fewer steps than a transfer; and what one begins with there.
SHORT, INSIDE = 1 << 14, b"message "

#: Seconds between two looks of a rank that waits, and between two signs of life.
LOOK, BEAT = 0.05, 1.0

#: The first of these looks where the answer is likely to come at once.
SHORT_LOOK = 2e-4


class End(NamedTuple):
    """Which rank ended first, and with which exit code."""

    rank: int
    code: int


class EndedElsewhere(GraftkitError):
    """Another rank has ended, and says why."""


class Group:
    """The ranks that share a command, as one of them sees them; from :meth:`join` to :meth:`leave` it gives signs of life.

    ``sent`` counts the bytes of what this rank told the others of its work.
    """

    def __init__(self, place: RankPlace) -> None:
        self.rank, self.count = place.rank, place.count
        self.sent = 0
        self._place = place
        self._numbers: Counter[tuple[int, int]] = Counter()
        self._store: Any = None
        self._stopping = threading.Event()
        self._done = threading.Event()
        self._dead: str | None = None
        self._minding = True
        self._beating = threading.Thread(target=self._beat, daemon=True, name="ranks")
        self._main = threading.main_thread().ident or 0

    def join(self) -> None:
        """Meet the other ranks.

        Raises:
            StorageFault: they did not come, or cannot be reached.
            EndedElsewhere: one came and has ended already.
        """
        place = self._place
        try:
            store = TCPStore(
                place.host, place.port, None, place.hosts, timedelta(seconds=MEETING), wait_for_workers=False
            )
        except RuntimeError as error:
            what = "cannot be opened by rank 0" if place.hosts else "leads to no rank 0"
            raise StorageFault(f"port {place.port} of {place.host} {what}; nothing was written") from error
        store.set_timeout(timedelta(seconds=TRANSFER))
        self._store = PrefixStore(f"graftkit/{place.attempt}", store)
        self._gathering("here", MEETING)
        with _naming_transfers():
            dist.init_process_group(
                "gloo", store=PrefixStore("gloo", self._store), rank=self.rank, world_size=self.count,
                timeout=timedelta(seconds=TRANSFER),
            )  # fmt: skip
        self._mind_signals()
        self._beating.start()

    def tell(self, name: str, message: dict[str, Any]) -> None:
        """Leave a message for all other ranks."""
        text = json.dumps(message)
        self.sent += len(text)
        with _naming_transfers():
            self._store.set(name, text)

    def told(self, name: str) -> dict[str, Any]:
        """Wait for a message.

        Raises:
            EndedElsewhere: a rank ended first.
        """
        self._wait([name])
        with _naming_transfers():
            message: dict[str, Any] = json.loads(self._store.get(name))
        return message

    def gather(self, found: Any) -> list[Any]:
        """Give what this rank ``found`` to rank 0, once all have something to give; return theirs there, by rank, else nothing.

        Raises:
            StorageFault: a transfer failed.
            EndedElsewhere: a rank ended first.
        """
        self._gathering("ready")
        self.sent += len(pickle.dumps(found))
        found_by_all: list[Any] = [None] * self.count if self.rank == 0 else []
        with _naming_transfers():
            dist.gather_object(found, found_by_all or None, dst=0)
        return found_by_all

    def send(self, rank: int, message: bytes) -> None:
        """Hand a message to another rank; a long one as soon as it waits for one, a short one lies in the store meanwhile.

        Raises:
            StorageFault: the transfer failed.
            EndedElsewhere: a rank ended first.
        """
        name = f"{self.rank}/{rank}/{self._next(self.rank, rank)}"
        self.sent += len(message)
        with _naming_transfers():
            self._store.set(f"post/{name}", INSIDE + message if len(message) <= SHORT else str(len(message)))
        if len(message) <= SHORT:
            return
        self._wait([f"take/{name}"], look=SHORT_LOOK)
        with _naming_transfers():
            self._store.delete_key(f"take/{name}")
            dist.send(torch.frombuffer(bytearray(message), dtype=torch.uint8), rank)

    def wait(self, rank: int) -> None:
        """Wait until the next message of another rank can be received; raises as :meth:`send` does."""
        self._wait([f"post/{rank}/{self.rank}/{self._numbers[rank, self.rank]}"], look=SHORT_LOOK)

    def receive(self, rank: int) -> bytes:
        """Wait for the next message of another rank; raises as :meth:`send` does."""
        name = f"{rank}/{self.rank}/{self._next(rank, self.rank)}"
        self._wait([f"post/{name}"], look=SHORT_LOOK)
        with _naming_transfers():
            posted = self._store.get(f"post/{name}")
            self._store.delete_key(f"post/{name}")
            if posted.startswith(INSIDE):
                return bytes(posted[len(INSIDE) :])
            found = torch.empty(int(posted), dtype=torch.uint8)
            self._store.set(f"take/{name}", "1")
            dist.recv(found, rank)
        return found.numpy().tobytes()

    def _next(self, sender: int, receiver: int) -> int:
        """The number of the next message between two ranks."""
        number = self._numbers[sender, receiver]
        self._numbers[sender, receiver] += 1
        return number

    def wait_for_end(self) -> None:
        """Wait until rank 0 has committed the result.

        Raises:
            EndedElsewhere: a rank ended in another way.
        """
        while (end := self.end()) is None:
            self._look()
        if end.code != 0:
            raise EndedElsewhere

    def end(self, code: int | None = None) -> End | None:
        """Which rank ended first, None where none has; with a ``code`` this one does, unless another was faster."""
        if self._store is None:
            return None if code is None else End(self.rank, code)
        try:
            if code is not None:
                self._store.compare_set("end", "", json.dumps([self.rank, code]))
            elif not self._store.check(["end"]):
                return None
            return End(*json.loads(self._store.get("end")))
        except RuntimeError:  # no store that answers: every rank speaks for itself
            return None if code is None else End(self.rank, code)

    def release(self) -> None:
        """From here on nothing that the others do matters to this rank."""
        self._minding = False

    def leave(self) -> None:
        """Give no more signs of life; the rank that holds the store waits a moment, so that the others can read the end in it."""
        self._done.set()
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "1")
            names = [f"left/{rank}" for rank in range(self.count)]
            until = time.monotonic() + 10 * BEAT
            while self._place.hosts and time.monotonic() < until and not self._store.check(names):
                time.sleep(LOOK)
            if dist.is_initialized():
                dist.destroy_process_group()

    @property
    def dead(self) -> str | None:
        """What this rank found of another that died without a word; None where none did."""
        return self._dead

    def require_running(self, _: int = 0) -> None:
        """Stop a thread that works, as soon as this rank or another is about to end; called with the bytes that it moved.

        Raises:
            EndedElsewhere: that is so.
        """
        if self._stopping.is_set():
            raise EndedElsewhere

    def _gathering(self, what: str, patience: float | None = None) -> None:
        """Wait until all ranks have come to the same point."""
        with _naming_transfers():
            self._store.set(f"{what}/{self.rank}", "1")
        self._wait([f"{what}/{rank}" for rank in range(self.count)], patience)

    def _wait(self, names: list[str], patience: float | None = None, look: float = LOOK) -> None:
        """Wait until all these messages are there; first look again after ``look`` seconds, later less and less often."""
        until = None if patience is None else time.monotonic() + patience
        while True:
            with _naming_transfers():
                if self._store.check(names):
                    return
            if self.end() is not None:
                raise EndedElsewhere
            if until is not None and time.monotonic() > until:
                raise StorageFault(f"of {self.count} ranks not all came within {patience:.0f} s; nothing was written")
            self._look(look)
            look = min(look * 1.5, LOOK)

    def _look(self, pause: float = LOOK) -> None:
        if self._dead is not None:
            raise StorageFault(self._dead)
        time.sleep(pause)

    def _mind_signals(self) -> None:
        """Let a signal also stop the threads that work: the handler that was there unwinds the main thread alone."""
        for number in STOPPING:
            before = signal.getsignal(number)
            if callable(before):

                def stop(number: int, frame: FrameType | None, before: Callable[..., Any] = before) -> None:
                    self._stopping.set()
                    before(number, frame)

                signal.signal(number, stop)

    def _beat(self) -> None:
        """Give signs of life, look for those of others, and unwind the main thread when another rank ends."""
        watched = range(1, self.count) if self.rank == 0 else (0,)
        seen = dict.fromkeys(watched, (0, time.monotonic()))
        while not self._done.wait(BEAT):
            end, now = self.end(), time.monotonic()
            try:
                self._store.add(f"beat/{self.rank}", 1)
                counts = {rank: self._store.add(f"beat/{rank}", 0) for rank in watched}
            except RuntimeError:
                self._dead = NO_ANSWER
            else:
                seen = {rank: held if held[0] == counts[rank] else (counts[rank], now) for rank, held in seen.items()}
                if silent := [rank for rank, (_, since) in seen.items() if now - since > SILENCE]:
                    self._dead = f"rank {silent[0]} gave no sign of life for {SILENCE:.0f} s; nothing was written"
            if (self._dead is not None or (end is not None and end.rank != self.rank)) and self._minding:
                self._stopping.set()
                signal.pthread_kill(self._main, signal.SIGTERM)
                return


@contextlib.contextmanager
def _naming_transfers() -> Iterator[None]:
    """Say in a line that a transfer between ranks failed."""
    try:
        yield
    except RuntimeError as error:
        raise StorageFault(NO_ANSWER) from error
