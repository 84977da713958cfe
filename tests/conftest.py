"""Settings for every test: no network, no noise, and where the shared pieces lie."""

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def demo():
    """The small trained model that ships with the project."""
    return ROOT / "recipes" / "models" / "demo-lm"
