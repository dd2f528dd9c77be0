"""A notebook with a wrong key number fails; without real data those that use them pass as they are.

All of them in one process and without kernels (`cells.py`), which compares what nbval compares; one
of them under nbval itself.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from .test_static import NOTEBOOKS, ROOT, code_of, name_of

#: notebook → (what stands there, what is put in its place): early, since nothing after it runs
WRONG = {
    "notebooks/01_tour.ipynb": ("panel.start(steps=25)", "panel.start(steps=5)"),
    "notebooks/02_fisher.ipynb": ("error, bound = terms.totals", "bound, error = terms.totals"),
    "notebooks/03_inverses.ipynb": (
        "inverse_of_chain = study.chain_precision(a, g)",
        "inverse_of_chain = study.chain_precision(*study.moments(seen))",
    ),
    "notebooks/04_damping.ipynb": ("advance(200)", "advance(2)"),
    "notebooks/05_autoencoders.ipynb": (
        '\\"cpu_seconds\\", (20, 10, 5, 3.5,',
        '\\"cpu_seconds\\", (20, 10, 5, 3.6,',
    ),
    "notebooks/06_invariance.ipynb": (
        "constant(lam=0.0, gamma=0.0)",
        "constant(lam=0.0, gamma=0.1)",
    ),
    "notebooks/07_write_a_plugin.ipynb": ("default=1 / 3", "default=1 / 2"),
    "notebooks/08_own_model.ipynb": ("batches(epochs=6)", "batches(epochs=5)"),
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


#: what the cell does in which the wrong number is found
FOUND = {"printed", "AssertionError"}
#: what computes for seconds where the wrong number is found, and is run as it is by nbval, or in a
#: browser, beside this: here under `make soak`
DEAR = {
    "notebooks/01_tour.ipynb",
    "notebooks/04_damping.ipynb",
    "notebooks/05_autoencoders.ipynb",
    "notebooks/09_claims.ipynb",
}
#: the one that nbval itself is asked about
UNDER_NBVAL = "notebooks/06_invariance.ipynb"


def environment() -> dict[str, str]:
    """Of a reader without real data, with every plugin."""
    return {k: v for k, v in os.environ.items() if k not in ("KFAC_LAB_DATA", "KFAC_LAB_PLUGINS")}


def reads_data(path):
    """Whether real data take part where they are: a run on them, or the subject of the figures.

    Their results, which some notebooks read, are there either way.
    """
    source = "\n".join(cell.source for cell in code_of(path))
    return any(re.search(pattern, source) for pattern in DATA)


def reading_data() -> dict[str, int]:
    """The notebooks that read them, and how many code cells each has."""
    return {name_of(path): len(code_of(path)) for path in NOTEBOOKS if reads_data(path)}


Outcome = tuple[int, str]  # how many cells passed, and what the next one did


def answers(requests: dict[str, str]) -> dict[str, tuple[Outcome, Outcome]]:
    """For each notebook both outcomes: with the wrong number, and as it is.

    Args:
        requests: how much of each is run as it is: "all", "there", up to where the wrong number
            was found, or "nothing".
    """
    done = warm.run(
        [sys.executable, str(Path(__file__).with_name("cells.py"))],
        input=json.dumps([(str(ROOT / name), *WRONG[name], n) for name, n in requests.items()]),
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    found = ((tuple(wrong), tuple(right)) for wrong, right in json.loads(done.stdout))
    return dict(zip(requests, found, strict=True))


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[Outcome, Outcome]]:
    reading = reading_data()
    return answers(
        {n: "all" if n in reading else "nothing" if n in DEAR else "there" for n in WRONG}
    )


def test_every_notebook_has_a_key_number():
    assert set(WRONG) == {name_of(path) for path in NOTEBOOKS}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_key_number_fails(name, outcomes):
    passed, found = outcomes[name][0]
    assert found in FOUND, f"after {passed} cells: {found}"


def passes_there(both: tuple[Outcome, Outcome]) -> None:
    """Nothing but the wrong number is found: the same cells, up to the one that found it."""
    (passed, _), right = both
    assert right == (passed + 1, "passed")


@pytest.mark.parametrize("name", sorted(set(WRONG) - set(reading_data()) - DEAR))
def test_as_it_is_it_passes_there(name, outcomes):
    passes_there(outcomes[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", sorted(DEAR))
def test_as_it_is_a_dear_one_passes_there_too(name):
    passes_there(answers({name: "there"})[name])


def test_nbval_says_the_same(tmp_path, outcomes):
    """Its cells that pass, and the one that fails."""
    right, wrong = WRONG[UNDER_NBVAL]
    changed = tmp_path / Path(UNDER_NBVAL).name
    text = (ROOT / UNDER_NBVAL).read_text(encoding="utf-8")
    changed.write_text(text.replace(right, wrong), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--nbval", str(changed)]
    options = [
        "-p",
        "tests.grammars",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
    ]
    done = subprocess.run(
        [*command, *options], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    passed, _ = outcomes[UNDER_NBVAL][0]
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"1 failed, {passed} passed" in done.stdout and f"::Cell {passed}" in done.stdout


def test_without_real_data_the_notebooks_that_use_them_pass_as_they_are(outcomes):
    """What is checked is the same with and without KFAC_LAB_DATA; `make test` runs it with.

    The others are the same cells in the same environment: once is enough.
    """
    some = reading_data()
    assert 2 <= len(some) < len(NOTEBOOKS)
    found = {name: outcomes[name][1] for name in some}
    assert found == {name: (cells, "passed") for name, cells in some.items()}
