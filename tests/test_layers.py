"""Imports go downwards only, operations never import one another, and light commands never load torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "graftkit"

#: From the bottom up. A room may import from its own row's package and from the rows before it.
LAYERS = [
    {"errors"},
    {"recipe_file"},
    {"recipe"},
    {"checkpoint", "initializers"},
    {"architecture"},
    {"running"},
    {"verification"},
    {"operations"},
    {"report"},
    {"planned"},
    {"planning", "share", "blame"},
    {"engine", "grafting", "compare", "inspection", "block_ranking", "adapter_verification", "merge_verification"},
    {"drafting", "selftest"},
    {"process", "usage"},
    {"completion", "printed_json"},
    {"commands"},
    {"ranks"},
    {"cli"},
]


def level(room):
    return next(index for index, rooms in enumerate(LAYERS) if room in rooms)


def imports(path):
    """Rooms of graftkit that a file imports at run time; imports for type checking alone do not count."""
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            parts = node.module.split(".")
            if parts[0] == "graftkit":
                names = [[alias.name] for alias in node.names if not alias.name.startswith("_")]
                yield from [parts[1:]] if len(parts) > 1 else names


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            yield pytest.param(path, parts, id="/".join(parts))


@pytest.mark.parametrize(("path", "parts"), list(files()))
def test_imports_go_downwards_only(path, parts):
    upward = [".".join(found) for found in imports(path) if level(found[0]) > level(parts[0])]
    assert not upward, f"{path.name} imports from above: {upward}"


def test_the_check_sees_an_upward_import(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("from graftkit.engine import plan\n")
    assert [found for found in imports(planted) if level(found[0]) > level("checkpoint")] == [["engine"]]


def test_operations_do_not_import_one_another():
    names = {path.stem for path in (PACKAGE / "recipe").glob("*.py")} & {
        path.stem for path in (PACKAGE / "operations").glob("*.py")
    } - {"__init__"}
    assert "extend_vocab" in names
    for path in (PACKAGE / "operations").glob("*.py"):
        if path.stem in names:
            others = {found[1] for found in imports(path) if found[0] == "operations" and len(found) > 1}
            assert not others & (names - {path.stem})


HEAVY = ("torch", "transformers", "tokenizers", "numpy", "huggingface_hub", "safetensors")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["schema"], ["init", "--help"], ["validate", "recipes/quickstart.yaml"]]
)
def test_light_commands_load_no_heavy_module(arguments):
    program = (
        "import sys; from graftkit.cli import run\n"
        f"try:\n    code = run({arguments!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        f"heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "sys.exit(f'loaded {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_library_imports_without_torch():
    program = "import sys, graftkit; dir(graftkit); sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_function_of_the_library_is_hidden_by_a_room():
    rooms = {path.stem for path in PACKAGE.iterdir()}
    import graftkit

    assert not {name for name in graftkit.__all__ if name in rooms}
