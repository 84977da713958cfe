"""What a run does to the disk, without loading torch: two files through Staging. Arguments: source, output, how."""

import sys
from pathlib import Path

from graftkit.checkpoint.staging import Staging
from graftkit.checkpoint.tensors import FileRange, Produced
from graftkit.checkpoint.transfer import take_file, write_segments
from graftkit.errors import GraftkitError


def staged(source, output, *, overwrite):
    with Staging(output, source=source, overwrite=overwrite) as staging:
        take_file(source / "a", staging.path / "a")
        staging.written(staging.path / "a")
        with open(staging.path / "b", "xb") as file:
            part = FileRange(source / "a", 0, 3)
            write_segments(file.fileno(), [part, Produced(3, lambda: memoryview(b"new"))])
        (staging.path / "graft_report.json").write_text("{}")
        staging.commit()


def naive(source, output, *, overwrite):
    output.mkdir(exist_ok=overwrite)
    for name, data in (("a", (source / "a").read_bytes()), ("b", b"aaanew"), ("graft_report.json", b"{}")):
        (output / name).write_bytes(data)


if __name__ == "__main__":
    how = {"staged": staged, "naive": naive}[sys.argv[3]]
    try:
        how(Path(sys.argv[1]), Path(sys.argv[2]), overwrite="--overwrite" in sys.argv)
    except GraftkitError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
