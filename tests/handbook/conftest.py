"""The site, built once: warnings are errors, and nothing comes from a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    pytest.importorskip("sphinx")
    made = tmp_path_factory.mktemp("site")
    environment = {k: v for k, v in os.environ.items() if k != "KFAC_LAB_PLUGINS"}
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*words, "-d", str(made / "doctrees"), "docs", str(made / "html")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return made / "html"
