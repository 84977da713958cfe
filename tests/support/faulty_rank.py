"""The command line in a rank that meets a fault. ``FAULT`` is ``rank kind number``, for the rank that has that number.

``kill``: SIGKILL at the ``number``-th time that it opens, makes, locks, renames or removes something in a staging directory.
``small``: no file that it writes may be larger than ``number`` bytes, by the kernel's own limit.
"""

import os
import resource
import signal
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


def meet(rank, kind, number):
    mine = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    if mine != rank:
        return
    if kind == "kill":
        kill_at(int(number))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(number), resource.RLIM_INFINITY))


if __name__ == "__main__":
    if "FAULT" in os.environ:
        meet(*os.environ["FAULT"].split())
    from graftkit.__main__ import main

    main()
