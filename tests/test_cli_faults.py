"""Calls of the system that fail, and full disks: the output, the exit code, one line, and no litter."""

import os
import shutil
import subprocess
from dataclasses import replace

import pytest
from support.scenes import Scene, state_of
from support.strace import at_point, needs_strace, points_of
from support.tried import tried

#: What each system call may answer, where the disk is broken or full, or where files or memory have run out.
BROKEN, FULL = ("EIO",), ("EIO", "ENOSPC")
ERRORS = {
    **dict.fromkeys(
        ("read", "pread64", "preadv2", "getdents64", "readlink", "access", "unlink", "unlinkat", "rmdir"), BROKEN
    ),
    **dict.fromkeys(("newfstatat", "statx"), ("EIO", "ENOMEM")),
    **dict.fromkeys(
        ("write", "pwrite64", "copy_file_range", "fsync", "renameat2", "mkdir", "ftruncate", "fallocate"), FULL
    ),
    "openat": ("EIO", "EMFILE", "ENOMEM"),
    "mmap": ("ENOMEM",),
    "flock": ("EIO",),
}

#: Bytes that a run may hold, of which its libraries take half.
MOST = 2 << 30

OUTPUT = "out"
TOKENS = {"op": "extend_vocab", "special_tokens": ["<|new|>"]}


class Failing:
    """An output that is replaced, everything verified, in which a call fails; ``points`` are where one can."""

    def __init__(self, model, warm, room):
        self.scene = Scene({"model": model}, [TOKENS], replaces=True, verify={})
        self.warm, self.place = warm, room / "run"
        warm.learn(*self.scene.lay(room / "learned"))
        self.points = points_of(warm, self.scene.lay(self.place), self.place, room / "log", calls=tuple(ERRORS))
        self.new = state_of(self.place / OUTPUT)

    def fail(self, point, error, codes=(0, 5, 7)):
        """Let a call fail there, and see that the exit code, one of ``codes``, and the line say what is true of the output; the exit code."""
        arguments = self.scene.lay(self.place)
        old = state_of(self.place / OUTPUT)
        done = at_point(self.warm, arguments, point, f"error={error}")
        where = (point, error, done.code, done.said)
        found = state_of(self.place / OUTPUT)
        assert found in (old, self.new), where
        assert done.code in codes, where
        assert (found == self.new) == (done.code in (0, 7)), where
        assert len(done.said.splitlines()) == (done.code != 0), where
        assert ("in place and whole" in done.said) == (done.code == 7), where
        assert self.scene.inputs_are_whole(self.place), where
        assert done.memory < MOST, (*where, done.memory)
        if list(self.place.glob(".*")):  # where the clean-up itself was what failed
            again = self.warm.run(*arguments)
            assert (again.code, again.said) == (0, ""), (*where, again.said)
        assert {path.name for path in self.place.iterdir()} == {"model", "recipe.yaml", OUTPUT}, where
        return done.code


@pytest.fixture(scope="module")
def failing(sources, warm, tmp_path_factory):
    return Failing(sources("llama"), warm, tmp_path_factory.mktemp("failing"))


@needs_strace
@pytest.mark.parametrize(
    ("call", "path", "error"),
    [
        ("read", "model/config.json", "EIO"),
        ("openat", "model/tokenizer.json", "EMFILE"),
        ("mmap", "model/model.safetensors", "ENOMEM"),
        ("read", ".out.graftkit-staging/checkpoint/tokenizer_config.json", "EIO"),
        ("read", ".out.graftkit-staging/checkpoint/config.json", "EIO"),
        ("openat", ".out.graftkit-staging/checkpoint/tokenizer.json", "EMFILE"),
        ("newfstatat", "model/model.safetensors", "EIO"),
        ("newfstatat", "model/tokenizer.json", "ENOMEM"),
        ("fsync", ".out.graftkit-staging/checkpoint/model.safetensors", "EIO"),
    ],
)
def test_a_call_that_fails_is_the_system_s_fault(failing, call, path, error):
    numbers = [number for name, file, number in failing.points if (name, file) == (call, str(failing.place / path))]
    for number in (numbers[1], numbers[-1]) if call == "newfstatat" else numbers[-1:]:
        assert failing.fail((call, str(failing.place / path), number), error) == 5


@needs_strace
def test_where_the_base_cannot_be_seen_no_card_calls_it_by_its_private_path(failing):
    folder = str(failing.place / "model")
    asked = [number for call, file, number in failing.points if (call, file) == ("newfstatat", folder)]
    for number in asked[-3:]:  # the card is written after all that is verified
        failing.fail(("newfstatat", folder, number), "ENOMEM")


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("what", ["opening", "reading", "asking", "writing"])
def test_a_call_fails_anywhere(failing, what):
    """Every call, also while transformers and the libraries in Rust read; the errors take turns."""
    kinds = {"openat": "opening", **dict.fromkeys(("read", "pread64", "preadv2", "mmap", "getdents64"), "reading"),
             **dict.fromkeys(("newfstatat", "statx", "access", "readlink"), "asking")}  # fmt: skip
    points = [point for point in failing.points if kinds.get(point[0], "writing") == what]
    assert len(points) > 20
    #: Where a library asks whether a file is there, Python keeps the error from it, and the file counts as missing.
    codes = (0, 3, 4, 5, 7) if what == "asking" else (0, 5, 7)
    wrong = []
    with tried(f"{what} fails: EIO, ENOSPC, EMFILE, ENOMEM") as ended:
        for turn, point in enumerate(points):
            errors = ERRORS[point[0]]
            try:
                ended[failing.fail(point, errors[turn % len(errors)], codes)] += 1
            except AssertionError as error:
                wrong.append(str(error).split("\n")[0])
        assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small file system"
)
def test_a_file_system_that_becomes_full(demo, warm, tmp_path):
    """As large as the output and less, in steps; without an old output, and with one to replace."""
    small, scene = tmp_path / "small", Scene({"model": demo}, [TOKENS], output="../small/out")
    small.mkdir()
    line = scene.lay(tmp_path / "run")
    warm.learn(*replace(scene, output="out").lay(tmp_path / "learned"))
    with tried("a full file system") as codes:
        for size in range(1, 50, 2):
            made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", small], check=False)
            if made.returncode:
                pytest.skip("nothing can be mounted here")
            try:
                for _ in range(2):  # the second replaces what the first has written, where it has
                    before = state_of(small / OUTPUT)
                    done = warm.run(*line, "--overwrite")
                    assert done.code in (0, 5), (size, done.said)
                    assert len(done.said.splitlines()) == (done.code != 0), (size, done.said)
                    found = state_of(small / OUTPUT)
                    assert found == before if done.code else found[1:] == (True, True), size
                    assert {item.name for item in small.iterdir()} <= {OUTPUT}, size
                    codes[done.code] += 1
            finally:
                subprocess.run(["umount", small], check=True)
    assert set(codes) == {0, 5}
