"""Make docs/img/report.png: the top of the page that `graftkit apply recipes/quickstart.yaml` writes, as a browser shows it.

python scripts/picture_of_page.py [--browser chromium]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "img" / "report.png"

#: Pixels, at the usual scale.
WIDTH, HEIGHT = 1100, 1500


def main() -> None:
    """Apply the recipe in a temporary folder and let the browser take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", default="chromium", help="a browser of the Chromium family")
    options = parser.parse_args()
    browser = shutil.which(options.browser)
    if browser is None:
        parser.error(f"{options.browser} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipes").symlink_to(ROOT / "recipes")
        recipe = ["recipes/quickstart.yaml", "-q", "verify.lens=true", "verify.signal=true"]
        subprocess.run([sys.executable, "-m", "graftkit", "apply", *recipe], cwd=folder, check=True)
        page = (Path(folder) / "out" / "quickstart" / "graft_report.html").as_uri()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
        subprocess.run(
            [browser, *flags, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={PICTURE}", page], check=True,
            capture_output=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
