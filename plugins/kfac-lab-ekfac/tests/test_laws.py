"""The conformance kit's laws."""

import pytest

import kfac_lab as kl
from kfac_lab.testing.plugin import check_plugin

pytestmark = pytest.mark.host("the kit makes its own tensors on the host; device_follows is a law")


def test_another_rebase():
    kl.testing.check(kl.lab.component("block", "ekfac(rebase='restart')"), slot="block")


def test_plugin_with_its_block_and_recipe():
    reports = check_plugin("kfac-lab-ekfac")
    assert {report.slot for report in reports} >= {"block", "recipe"}
    assert "ekfac" in {report.component for report in reports if report.slot == "block"}
    assert all(report.passed for report in reports), "\n".join(map(str, reports))
