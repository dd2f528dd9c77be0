"""The site, built once: warnings are errors, and nothing comes from a network."""

import os
import sys
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[2]
#: sphinx, without the collector of garbage: it goes through all pages again and again
SPHINX = (
    "import gc, sys; gc.disable(); from sphinx.cmd.build import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    pytest.importorskip("sphinx")
    made = tmp_path_factory.mktemp("site")
    environment = {k: v for k, v in os.environ.items() if k != "KFAC_LAB_PLUGINS"}
    words = [sys.executable, "-c", SPHINX, "-q", "-W", "--keep-going", "-b", "html"]
    done = warm.run(
        [*words, "-d", str(made / "doctrees"), "docs", str(made / "html")], ROOT, environment
    )
    assert done.returncode == 0, done.stderr
    return made / "html"
