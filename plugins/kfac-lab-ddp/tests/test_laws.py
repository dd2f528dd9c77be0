"""The conformance kit's laws, two processes included."""

import pytest

import kfac_lab as kl
from kfac_lab.testing.plugin import check_plugin

pytestmark = pytest.mark.host("the kit makes its own tensors on the host; device_follows is a law")


@pytest.fixture(scope="module")
def reports():
    """Of all that it registers, at the defaults: each is tried once."""
    return {(found.slot, found.component): found for found in check_plugin("kfac-lab-ddp")}


def agrees(report):
    """Whether two processes were asked, and agree."""
    status = {result.law: result.status for result in report.results}
    return report.passed and status["two_processes"] == "obeyed"


def test_collective(reports):
    assert agrees(reports["collective", "distributed"])


def test_collective_of_small_messages():
    text = "distributed(bucket=1)"
    assert agrees(kl.testing.check(kl.lab.component("collective", text), slot="collective"))


def test_structure(reports):
    assert kl.lab.component("structure", "sharded").inner == "block_diagonal"
    assert reports["structure", "sharded"].passed


def test_structure_around_the_other():
    structure = kl.lab.component("structure", "sharded(inner='block_tridiagonal')")
    kl.testing.check(structure, slot="structure")


def test_plugin(reports):
    assert all(report.passed for report in reports.values())
