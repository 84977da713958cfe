"""The scripts of the project as modules."""

import importlib.util
import sys
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def load_script(name):
    """Import `scripts/<name>.py`."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))  # they import one another
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
