"""Systems without what Linux alone has: each call removed, `apply` writes the same bytes; on Windows one line says where to run."""

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.recipes import recipe

import graftkit
from graftkit.checkpoint import child, durable, transfer
from graftkit.running import memory

ROOT = Path(__file__).parent.parent
GROW = {"op": "extend_vocab", "tokens": ["coroutine"]}


@pytest.fixture(scope="module")
def usual(demo, tmp_path_factory):
    """The bytes of the weights as they are written here."""
    return apply(demo, tmp_path_factory.mktemp("usual") / "out")


def apply(demo, output):
    graftkit.apply(recipe(demo, output, GROW, verify={"outputs": False}))
    return (output / "model.safetensors").read_bytes()


def without_proc(monkeypatch, tmp_path):
    def readlink(path, *, real=os.readlink, **options):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return real(path, **options)

    monkeypatch.setattr(memory, "PROC", tmp_path / "no-proc")
    monkeypatch.setattr(os, "readlink", readlink)


def sendfile_of_macos(monkeypatch, _):
    def into_sockets_alone(*_):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))

    monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(os, "sendfile", into_sockets_alone)


def without_libc_of_linux(monkeypatch, _):
    for module in (transfer, durable):
        monkeypatch.setattr(module, "_LIBC", object())


def without(*names):
    def remove(monkeypatch, _):
        for name in names:
            monkeypatch.delattr(os, name, raising=False)

    return remove


REMOVED = {
    "copy_file_range": without("copy_file_range"),
    "copy_file_range and sendfile": without("copy_file_range", "sendfile"),
    "sched_getaffinity": without("sched_getaffinity"),
    "preadv": without("preadv"),
    "sendfile between files": sendfile_of_macos,
    "renameat2, fallocate and sync_file_range": without_libc_of_linux,
    "/proc": without_proc,
}


@pytest.mark.parametrize("removed", REMOVED)
def test_apply_falls_back_and_writes_the_same_bytes(removed, demo, usual, tmp_path, monkeypatch):
    REMOVED[removed](monkeypatch, tmp_path)
    assert apply(demo, tmp_path / "out") == usual


def test_without_proc_the_memory_is_the_machine_s(monkeypatch, tmp_path):
    without_proc(monkeypatch, tmp_path)
    assert memory.available() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(os, "sysconf", int)
    assert memory.available() == math.inf


def test_what_cannot_exchange_directories_says_so(demo, tmp_path, monkeypatch):
    apply(demo, tmp_path / "out")
    without_libc_of_linux(monkeypatch, tmp_path)
    with pytest.raises(
        graftkit.GraftkitError, match="cannot exchange directories, which --overwrite needs; name a new output"
    ):
        graftkit.apply(recipe(demo, tmp_path / "out", GROW, verify={"outputs": False}), overwrite=True)


def test_a_child_runs_where_address_space_has_no_limit():
    refuses = (
        "import resource\n"
        "def refuse(kind, limits, real=resource.setrlimit):\n"
        "    if kind == resource.RLIMIT_AS: raise ValueError('current limit exceeds maximum limit')\n"
        "    real(kind, limits)\n"
        "resource.setrlimit = refuse\n"
    )
    job = '{"path": [], "seconds": 5, "bytes": 1}'
    done = subprocess.run(
        [sys.executable, "-I", "-c", refuses + child._LIMITS + "print(1)"],
        input=job,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_windows_gets_one_line():
    windows = "import sys; sys.platform = 'win32'; "
    command = [sys.executable, "-c", windows + "from graftkit.__main__ import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.splitlines() == ["graftkit runs on Linux and macOS; on Windows run it inside WSL"]
    library = [sys.executable, "-c", windows + "import graftkit; graftkit.plan"]
    done = subprocess.run(library, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == "ImportError: graftkit runs on Linux and macOS; on Windows run it inside WSL"
