"""A notebook with a wrong key number fails under nbval; without real data all pass as they are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_static import NOTEBOOKS, ROOT, code_of, name_of

#: notebook → (what stands there, what is put in its place): early, since nothing after it runs
WRONG = {
    "notebooks/01_tour.ipynb": ("panel.start(steps=25)", "panel.start(steps=5)"),
    "notebooks/02_fisher.ipynb": ("error, bound = terms.totals", "bound, error = terms.totals"),
    "notebooks/03_inverses.ipynb": (
        "inverse_of_chain = study.chain_precision(a, g)",
        "inverse_of_chain = study.chain_precision(*study.moments(seen))",
    ),
    "notebooks/04_damping.ipynb": ("constant(gamma={gamma})", "constant(gamma={2 * gamma})"),
    "notebooks/05_autoencoders.ipynb": ("(100, 200, 300, 540, 1000)", "(100, 200, 320, 540, 1000)"),
    "notebooks/06_invariance.ipynb": (
        "constant(lam=0.0, gamma=0.0)",
        "constant(lam=0.0, gamma=0.1)",
    ),
    "notebooks/07_write_a_plugin.ipynb": ("default=1 / 3", "default=1 / 2"),
    "notebooks/08_own_model.ipynb": (
        'opt.param_groups[0][\\"lr\\"] = lr',
        'opt.param_groups[0][\\"lr\\"] = 1.0',
    ),
    "notebooks/09_claims.ipynb": ("error, bound = terms.totals", "bound, error = terms.totals"),
    "plugins/kfac-lab-example/trust_region.ipynb": (
        'swapped.swap(damping=\\"trust_region\\")',
        'swapped.swap(damping=\\"constant\\")',
    ),
}


#: code that reads real data; a structure_run that names its problem is on the digits
DATA = (
    r"structure_run\((?![^)]*problem=\"digits_small\")",
    r"Run\(\s*\"(mnist|faces)",
    r"(mnist|faces)\w*\(seed",
    "KFAC_LAB_DATA",
)


def validated(*paths: Path, **environment: str) -> subprocess.CompletedProcess:
    """The outcome of nbval on some notebooks, in a process of its own."""
    env = {k: v for k, v in os.environ.items() if k not in ("KFAC_LAB_DATA", "KFAC_LAB_PLUGINS")}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--nbval", *map(str, paths)]
    options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    whole = [*command, *options]
    env |= environment
    return subprocess.run(whole, env=env, cwd=ROOT, capture_output=True, text=True)


def test_every_notebook_has_a_key_number():
    assert set(WRONG) == {name_of(path) for path in NOTEBOOKS}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_key_number_fails(name, tmp_path):
    right, wrong = WRONG[name]
    text = (ROOT / name).read_text(encoding="utf-8")
    assert right in text, "the key number is somewhere else now"
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copytree(ROOT / "results", tmp_path / "results")
    changed = folder / Path(name).name
    changed.write_text(text.replace(right, wrong), encoding="utf-8")
    done = validated(changed)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout


def reads_data(path):
    """Whether real data take part where they are: a run on them, or the subject of the figures.

    Their results, which some notebooks read, are there either way.
    """
    source = "\n".join(cell.source for cell in code_of(path))
    return any(re.search(pattern, source) for pattern in DATA)


def test_without_real_data_the_notebooks_that_use_them_pass_as_they_are():
    """What is checked is the same with and without KFAC_LAB_DATA; `make test` runs it with.

    The others are the same cells in the same environment: once is enough.
    """
    some = [path for path in NOTEBOOKS if reads_data(path)]
    assert 2 <= len(some) < len(NOTEBOOKS)
    done = validated(*some)
    assert done.returncode == 0, done.stdout[-3000:]
