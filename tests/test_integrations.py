"""scripts/integration: what it lists, how it compares, and what it says of a tool that does not install; the real run is slow."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "scripts" / "integrations"
RECORD = ROOT / "docs" / "integration.json"


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """The scripts import one another by their plain names, which is undone behind the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER / "inside"))
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(FOLDER) in sys.modules[name].__file__:
            del sys.modules[name]


def command(*arguments):
    return subprocess.run([sys.executable, FOLDER, *arguments], capture_output=True, text=True, check=False)


def test_it_lists_its_tools_each_with_a_script_of_its_own():
    from tool import TOOLS

    done = command("--list")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(TOOLS)
    assert all((FOLDER / "inside" / tool.script).is_file() for tool in TOOLS.values())
    assert command("--list", "gguf").stdout.split()[0] == "gguf"


def test_a_tool_that_it_does_not_have_is_named():
    done = command("ollama")
    assert done.returncode == 2
    assert "no tool 'ollama'; there are transformers-4.46, " in done.stderr


def test_what_does_not_install_is_skipped_with_pip_s_reason(tmp_path, monkeypatch):
    import page
    from tool import Tool

    spec = importlib.util.spec_from_file_location("integrations", FOLDER / "__main__.py")
    integrations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(integrations)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found = integrations.found_by("none", Tool("none.py", ("graftkit-none-such",), ()), tmp_path, 120)
    said = "skipped: does not install: Could not find a version that satisfies the requirement graftkit-none-such"
    assert page.verdict(found).startswith(said)
    assert f"| none | - | {said}" in page.markdown({"none": found})
    site = next((tmp_path / "none" / "lib").glob("python*")) / "site-packages"
    assert (tmp_path / "torch" / "torch").is_symlink()
    assert (site / "torch_of_graftkit.pth").read_text().strip() == str(tmp_path / "torch")
    assert not (tmp_path / "torch" / "peft").exists()


def test_pip_s_reason_is_one_line_without_addresses():
    from environment import reason_of

    said = (
        "WARNING: Retrying https://packages.example/simple/x\n"
        "ERROR: Cannot install a and b==1 because these package versions have conflicting dependencies.\n"
        "    a 1.0 depends on torch==2.1 from https://packages.example/torch\n"
        "    The user requested (constraint) torch==2.13.0\n"
    )
    reason = reason_of(said)
    assert "depends on torch==2.1" in reason
    assert "torch==2.13.0" in reason
    assert "example" not in reason
    assert reason_of("ERROR: No matching distribution found for x") == "No matching distribution found for x"


def test_a_tool_that_does_not_start_is_skipped_and_one_that_breaks_is_wrong(tmp_path):
    from page import verdict

    (tmp_path / "no_tool.py").write_text("raise OSError('libcuda.so.1 is not there')")
    program = "import compared, sys; compared.main({}, lambda *_: 1 / 0)"
    found = {}
    for name, needed in (("unstarted", ("no_tool",)), ("broken", ())):
        out = tmp_path / f"{name}.json"
        subprocess.run(
            [sys.executable, "-c", program.format(needed), tmp_path, tmp_path, out],
            env=os.environ | {"PYTHONPATH": f"{FOLDER / 'inside'}{os.pathsep}{tmp_path}"}, capture_output=True, check=True,
        )  # fmt: skip
        found[name] = json.loads(out.read_text())
    assert verdict(found["unstarted"]) == "skipped: does not start: OSError: libcuda.so.1 is not there"
    assert verdict(found["broken"]) == "wrong: ran to the end"


def test_equal_is_bit_for_bit_and_near_has_the_noise_of_the_reference():
    from compared import Rows

    reference = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    exact = reference.astype(np.float64) + np.array([0, 1e-6, 0])
    rows = Rows()
    rows.equal("same", reference, reference.copy())
    rows.equal("one bit", reference, np.nextafter(reference, 9))
    rows.equal("kind", reference, reference.astype(np.float64))
    rows.near("same", reference, reference, exact)
    rows.near("twice the noise", reference + np.float32(1.9e-6), reference, exact)
    rows.near("more", reference + np.float32(4e-6), reference, exact)
    rows.near("fewer", reference[:2], reference, exact)
    assert [row["outcome"] for row in rows.rows] == [
        "equal", "differs", "differs", "equal", "within noise", "differs", "differs",
    ]  # fmt: skip


def test_the_page_is_what_its_record_gives():
    import page
    from tool import TOOLS

    found = page.load(RECORD)
    assert set(found) <= set(TOOLS)
    assert page.markdown(found, tuple(TOOLS)) == (ROOT / "docs" / "integration.md").read_text(encoding="utf-8")
    assert all(tool["rows"] or tool["skipped"] for tool in found.values())
    assert "http" not in RECORD.read_text()


@pytest.mark.slow
def test_the_tools_find_what_they_should(tmp_path):
    cache = Path(os.environ.get("GRAFTKIT_INTEGRATION") or tmp_path)
    done = command("transformers-4.57", "peft-0.18", "--cache", str(cache))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held" in done.stdout or "skipped" in done.stdout
