"""The table of problems: every name builds, and reading it loads nothing heavy."""

import sys

import pytest
import warm

from kfac_lab.core.problem import Problem
from kfac_lab.problems import PROBLEMS

NEEDS_DATA = {"mnist", "mnist_small", "faces"}


def test_every_problem_has_a_line():
    assert set(PROBLEMS) == {
        "curves",
        "mnist",
        "faces",
        "digits",
        "digits_classifier",
        "digits_small",
        "mnist_small",
    }
    for name, (function, summary, reference) in PROBLEMS.items():
        assert callable(function) and function.__name__ == name
        assert summary and reference.startswith("section ")


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_every_problem_builds_by_its_name(name, request):
    if name in NEEDS_DATA:
        request.getfixturevalue("data_folder")
    problem = PROBLEMS[name].function(seed=4, device="cpu")
    assert isinstance(problem, Problem)
    assert problem.name == name
    outputs = problem.model(problem.inputs[:5])
    assert problem.likelihood.loss(outputs, problem.targets[:5]).shape == (5,)


def test_reading_the_table_loads_no_data_module():
    program = (
        "import sys, kfac_lab.problems; "
        "print([m for m in sys.modules if m.startswith('kfac_lab.problems.')], "
        "'sklearn' in sys.modules)"
    )
    printed = warm.run([sys.executable, "-c", program]).stdout
    assert printed.strip() == "[] False"
