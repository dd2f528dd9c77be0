"""The conformance kit's laws, two processes included."""

import pytest

import kfac_lab as kl
from kfac_lab.testing.plugin import check_plugin


@pytest.mark.parametrize("text", ["distributed", "distributed(bucket=1)"])
def test_collective(text):
    report = kl.testing.check(kl.lab.component("collective", text), slot="collective")
    status = {result.law: result.status for result in report.results}
    assert status["two_processes"] == "obeyed"


@pytest.mark.parametrize("inner", ["block_diagonal", "block_tridiagonal"])
def test_structure(inner):
    structure = kl.lab.component("structure", f"sharded(inner={inner!r})")
    kl.testing.check(structure, slot="structure")


def test_plugin():
    assert all(report.passed for report in check_plugin("kfac-lab-ddp"))
