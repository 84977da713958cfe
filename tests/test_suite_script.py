"""What scripts/test --machines, --newest and --lowest note, the floors that they install, and the page that is made of it."""

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.sweeps import load_script

ROOT = Path(__file__).parent.parent
SUITE, FLOORS, PAGE = load_script("suite"), load_script("floors"), load_script("verdict_page")

TESTS = """
import pytest
def test_right(): assert True
def test_wrong(): assert False
def test_left_out(): pytest.skip("no")
@pytest.fixture
def broken(): raise ValueError
def test_set_up(broken): pass
"""


def test_what_passed_and_what_did_not_is_counted(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junitxml=junit.xml",
        "-o",
        "junit_family=xunit1",
    ]
    subprocess.run([*command, "test_some.py"], cwd=tmp_path, capture_output=True, check=False)
    failures = ["test_some.py::test_wrong", "test_some.py::test_set_up"]
    assert SUITE.counts(tmp_path / "junit.xml") == (1, 1, failures)
    assert SUITE.counts(tmp_path / "none.xml") == (0, 0, ["the tests did not run"])


def outcome(**fields):
    plain = {
        "kind": "machines", "setting": "MKL_CBWR=COMPATIBLE", "passed": 3, "failed": 0, "skipped": 1, "faults": 2, "caught": 2,
        "clean": 4, "flagged": 0, "seconds": 9, "python": "3.11.7", "libraries": {"torch": "2.13.0"},
        "processor": "x86_64, avx2, 2 cores", "failures": (),
    }  # fmt: skip
    return SUITE.Outcome(**{**plain, **fields})


@pytest.mark.parametrize(
    "fields", [{"failed": 1}, {"passed": 0}, {"caught": 1}, {"flagged": 1}, {"faults": 0, "caught": 0}], ids=str
)
def test_one_thing_wrong_is_not_green(fields):
    assert outcome().green
    assert not outcome(**fields).green


def test_the_cross_section_leaves_the_self_test_to_the_whole_suite():
    assert outcome(kind="cross-section", faults=0, caught=0).green


def test_a_fault_that_one_check_missed_is_not_caught():
    assert SUITE.judged("no JSON") == ([], [])
    text = """{"faults": [
        {"seen_by": {"bytes": "a"}, "missed_by": [], "not_applicable": ""},
        {"seen_by": {"bytes": "a"}, "missed_by": ["outputs"], "not_applicable": ""},
        {"seen_by": {}, "missed_by": [], "not_applicable": ""},
        {"seen_by": {}, "missed_by": [], "not_applicable": "no head"}],
        "clean": [{"flagged": {}}, {"flagged": {"bytes": "a"}}]}"""
    assert SUITE.judged(text) == ([True, False, False], [False, True])


def test_a_processor_is_asked_for_what_it_has():
    asked = {best: {word for item in SUITE.machines(best) for word in item.name.split()} for best in SUITE.CAPABILITIES}
    assert "ATEN_CPU_CAPABILITY=avx512" in asked["avx512"]
    assert "ATEN_CPU_CAPABILITY=avx512" not in asked["avx2"]
    assert "ATEN_CPU_CAPABILITY=default" in asked["default"]
    threads = {f"OMP_NUM_THREADS={count}" for count in (1, 2, 3)}
    assert {*threads, "MKL_CBWR=COMPATIBLE", "ONEDNN_MAX_CPU_ISA=SSE41"} <= asked["default"]
    assert SUITE.capability() in asked


def test_a_setting_reaches_the_tests(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    (threads,) = [setting for setting in SUITE.machines("default") if setting.name == "OMP_NUM_THREADS=3"]
    environment = SUITE._environment(threads.variables)
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "MKL_CBWR" not in environment


def test_the_lowest_versions_are_the_floors_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {
        Requirement(line).name for line in [*project["dependencies"], *project["optional-dependencies"]["parquet"]]
    }
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/floors.py", "torch==2.13.0"], capture_output=True, text=True, check=True
    )
    floors = [Requirement(line) for line in done.stdout.splitlines()]
    assert {floor.name for floor in floors} == needed
    assert all(str(floor.specifier).startswith("==") for floor in floors)
    assert [str(floor) for floor in floors if floor.name == "torch"] == ["torch==2.13.0"]
    for version in ("3.11", "3.13"):
        chosen = [
            floor.name for floor in floors if not floor.marker or floor.marker.evaluate({"python_version": version})
        ]
        assert len(chosen) == len(set(chosen))


def test_a_dependency_without_a_floor_is_named(tmp_path):
    file = tmp_path / "pyproject.toml"
    file.write_text('[project]\ndependencies = ["rich"]\n[project.optional-dependencies]\nparquet = []\n')
    with pytest.raises(SystemExit, match="pyproject.toml: 'rich' has no floor; write it as NAME>=VERSION"):
        FLOORS.floors(file)


def test_the_page_has_a_row_for_each_run_and_names_what_failed():
    noted = [
        outcome(),
        outcome(kind="lowest", setting="lowest versions", failed=1, failures=("tests/test_a.py::test_b",)),
    ]
    page = PAGE.markdown([dataclasses.asdict(item) for item in noted])
    assert "| `MKL_CBWR=COMPATIBLE` | 3.11.7 | 2.13.0 | x86_64, avx2, 2 cores | 3 | 0 | 1 | 2 of 2 | 0 of 4 |" in page
    assert "- `tests/test_a.py::test_b` failed: lowest versions, Python 3.11.7" in page
    assert "## The newest versions" not in page


def test_the_page_keeps_what_was_run_elsewhere_and_replaces_what_was_run_again():
    run = SUITE.Outcome(
        "machines", "MKL_CBWR=COMPATIBLE", 3, 1, 0, 2, 2, 4, 0, 5, "3.11.7",
        {"torch": "2.13.0"}, "x86_64, avx512, 2 cores", ("tests/test_a.py::test_b",),
    )  # fmt: skip
    before = PAGE.markdown([dataclasses.asdict(run)])
    elsewhere = dataclasses.replace(run, processor="x86_64, avx2, 2 cores", passed=5, failed=0, failures=())
    both = PAGE.markdown([dataclasses.asdict(elsewhere)], before)
    assert "avx512, 2 cores | 3 | 1 |" in both
    assert "avx2, 2 cores | 5 | 0 |" in both
    again = dataclasses.replace(run, passed=4, failed=0, failures=())
    assert PAGE.markdown([dataclasses.asdict(again)], both).count("avx512, 2 cores") == 1
    assert PAGE.markdown([], both) == both
