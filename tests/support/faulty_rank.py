"""The command line in a rank that meets a fault. ``FAULT`` is ``rank kind number``, for the rank that has that number.

``kill``: SIGKILL at the ``number``-th time that it opens, makes, locks, renames or removes something in a staging directory.
``small``: no file that it writes may be larger than ``number`` bytes, by the kernel's own limit.
``die``: SIGKILL when it is to run a block for rank 0 for the ``number``-th time.
``die_back``: the same when it is to give gradients.
``unreadable``: the ``number``-th piece of a weight that it reads to run a model gives EIO.
``spoil``: the first number of the tensor called ``number`` is another one in the staging directory once its bytes have been compared.
"""

import errno
import itertools
import os
import resource
import signal
import struct
import sys

#: What Python tells an audit hook of work on files.
EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree")


def kill_at(number):
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in EVENTS and arguments and "graftkit-staging" in str(arguments[0]):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def die_at(number, what="_run"):
    from graftkit.running.split.owner import BlockOwner

    run, count = getattr(BlockOwner, what), itertools.count(1)

    def run_or_die(self, *about, **others):
        if next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, *about, **others)

    setattr(BlockOwner, what, run_or_die)


def fail_reading_at(number):
    from graftkit.running.paging import origin

    read, count = origin.read_into, itertools.count(1)

    def read_or_fail(*about):
        if next(count) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(*about)

    origin.read_into = read_or_fail


def spoil(name):
    from graftkit import engine
    from graftkit.checkpoint.checkpoint import Checkpoint

    run = engine.run_checks

    def run_spoiled(planned, subject):
        stored = Checkpoint.open(str(subject.result)).tensors[name]
        with open(stored.path, "r+b") as file:
            file.seek(stored.offset)
            file.write(struct.pack("<f", 0.5))
        return run(planned, subject)

    engine.run_checks = run_spoiled


def meet(rank, kind, number):
    mine = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    if mine != rank:
        return
    if kind == "kill":
        kill_at(int(number))
    elif kind == "die":
        die_at(int(number))
    elif kind == "die_back":
        die_at(int(number), "_pull")
    elif kind == "unreadable":
        fail_reading_at(int(number))
    elif kind == "spoil":
        spoil(number)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))


if __name__ == "__main__":
    if "FAULT" in os.environ:
        meet(*os.environ["FAULT"].split())
    from graftkit.__main__ import main

    main()
