"""``make wheels``: builds all six distributions and tries them from the wheels alone.

An empty environment gets the six wheels; the tests come from the sdists, whose own packages are
put out of reach, so that what is tested is what pip installs.

    python release/wheels.py [--dist dist] [--env FOLDER] [--only kfac_lab_conv] [--all | TESTS ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from distributions import (
    ROOT,
    TOOLS,
    built,
    choosing,
    chosen,
    environment,
    name_in,
    run,
    tested,
    unpacked,
    wanted,
)


def main() -> int:
    """Builds, installs, tests; returns the exit code."""
    said = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    said.add_argument("--dist", type=Path, default=ROOT / "dist")
    said.add_argument("--env", type=Path, help="the environment's folder; a temporary one")
    said.add_argument("--no-tests", action="store_true", help="build and install only")
    choosing(said)
    options = said.parse_args()
    options.dist.mkdir(exist_ok=True)
    wheels = built(options.dist, not options.built)
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
        sources = wanted(unpacked(options.dist, folder / "src"), options)
        failed = tested(python, sources, chosen(options), options.workers)
    names = ", ".join(failed or map(name_in, sources))
    print(names, "failed" if failed else "passed from the wheels")
    return 1 if failed else 0


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
