"""``make wheels``: builds all six distributions and tries them from the wheels alone.

An empty environment gets the six wheels; the tests come from the sdists, whose own packages are
put out of reach, so that what is tested is what pip installs.

    python release/wheels.py [--dist dist] [--env FOLDER] [TESTS ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from distributions import ROOT, TOOLS, built, environment, run, tested, unpacked


def main() -> int:
    """Builds, installs, tests; returns the exit code."""
    said = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    said.add_argument("--dist", type=Path, default=ROOT / "dist")
    said.add_argument("--env", type=Path, help="the environment's folder; a temporary one")
    said.add_argument("--no-tests", action="store_true", help="build and install only")
    said.add_argument("tests", nargs="*", help="some of the main distribution's tests")
    options = said.parse_args()
    options.dist.mkdir(exist_ok=True)
    wheels = built(options.dist)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = environment(sys.executable, options.env or folder / "env")
        main_wheel = next(w for w in wheels if w.name.startswith("kfac_lab-"))
        others = [w for w in wheels if w != main_wheel]
        run([python, "-m", "pip", "install", "-q", f"{main_wheel}[lab,data]", *others, *TOOLS])
        run([python, "-c", PROOF], folder)
        run([python.parent / "kfac-lab", "plugins"], folder)
        run([python.parent / "kfac-lab", "train", "digits", "--steps", "5"], folder)
        if options.no_tests:
            return 0
        passed = tested(python, unpacked(options.dist, folder / "src"), options.tests)
    print("all six pass their tests from their wheels" if passed else "some tests failed")
    return 0 if passed else 1


PROOF = """
import pathlib, site, kfac_lab, kfac_lab_conv, kfac_lab_ddp, kfac_lab_ekfac, kfac_lab_example
import kfac_lab_layers
home = pathlib.Path(site.getsitepackages()[0])
for module in (kfac_lab, kfac_lab_conv, kfac_lab_ddp, kfac_lab_ekfac, kfac_lab_example,
               kfac_lab_layers):
    assert pathlib.Path(module.__file__).is_relative_to(home), module.__file__
print("imported from the wheels:", kfac_lab.__version__)
"""

if __name__ == "__main__":
    raise SystemExit(main())
