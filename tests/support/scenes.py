"""Commands that write different things, with what they find, each laid out anew in a folder as often as wanted."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

#: What stands in a recipe for the folder of the scene.
PLACE = "PLACE"

#: What an old output holds: the mark of an output, and what the new one does not have.
OLD = {"graft_report.json": "{}", "old.txt": "old", "adapter/old.txt": "old"}


@dataclass(frozen=True)
class Scene:
    """``inputs`` are copied into the folder by name; ``replaces``: there is an old output, and it is to be replaced."""

    inputs: dict[str, Path]
    operations: list[dict]
    output: str = "out"
    replaces: bool = False
    verify: dict = field(default_factory=lambda: {"outputs": False})

    def lay(self, place):
        """Make the folder as it is before the command; return the command's arguments."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for name, path in self.inputs.items():
            shutil.copytree(path, place / name)
        recipe = {"version": 1, "base_model": f"{PLACE}/model", "output": f"{PLACE}/{self.output}"}
        text = json.dumps({**recipe, "operations": self.operations, "verify": self.verify})
        (place / "recipe.yaml").write_text(text.replace(PLACE, str(place)))
        if self.replaces:
            for name, text in OLD.items():
                (place / self.output / name).parent.mkdir(parents=True, exist_ok=True)
                (place / self.output / name).write_text(text)
        return ["apply", place / "recipe.yaml", "-q", *["--overwrite"] * self.replaces]

    def inputs_are_whole(self, place):
        """Whether no input was changed."""
        return all(files_of(path) == files_of(place / name) for name, path in self.inputs.items())


def files_of(folder):
    """The bytes of each file under a folder, by relative path; None where there is no folder."""
    if not folder.exists():
        return None
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def state_of(output):
    """The bytes of an output; those of the report and its page, which name inodes and seconds, only as whole or not."""
    from graftkit.report.seal import is_sealed

    files = files_of(output)
    if files is None or files == {name: text.encode() for name, text in OLD.items()}:
        return files
    report, page = files.pop("graft_report.json", b""), files.pop("graft_report.html", b"</html>")
    return files, is_sealed(report), page.rstrip().endswith(b"</html>")
