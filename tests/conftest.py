"""Settings for every test: no network, no noise, and where the shared pieces lie."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import gc

import pytest

from graftkit.process import COLLECT_EVERY

gc.set_threshold(COLLECT_EVERY)  # as the command does

ROOT = Path(__file__).parent.parent

#: Folders whose tests compute: scripts/test --machines runs them under each setting of the machine. A test elsewhere that
#: computes carries the marker itself.
NUMERICAL = ("architecture", "initializers", "operations", "selftest", "verification")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.relative_to(ROOT / "tests").parts[0] in NUMERICAL:
            item.add_marker("numerical")


@pytest.fixture(scope="session")
def demo():
    """The small trained model that ships with the project."""
    return ROOT / "recipes" / "models" / "demo-lm"


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Small checkpoints by family, each written once: read them, do not change them."""
    from support.families import build

    made = {}

    def source(family, dtype="float32", **options):
        key = (family, dtype, *options.items())
        if key not in made:
            made[key] = build(family, tmp_path_factory.mktemp("source") / family, dtype=dtype, **options)
        return made[key]

    return source


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Bases with what was really trained on them, each trained once: read them, do not change them."""
    from support.trained import train

    made = []

    def find(training):
        known = next((result for asked, result in made if asked == training), None)
        if known is None:
            known = train(training, tmp_path_factory.mktemp("trained"))
            made.append((training, known))
        return known

    return find


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """A process that has its imports behind it, and starts commands by forking."""
    from support.warm import Warm

    with Warm(tmp_path_factory.mktemp("warm")) as parent:
        yield parent
