"""The conformance kit's laws."""

import pytest

import kfac_lab as kl
from kfac_lab.testing.plugin import check_plugin


@pytest.mark.parametrize("text", ["ekfac", "ekfac(rebase='restart')"])
def test_block(text):
    kl.testing.check(kl.lab.component("block", text), slot="block")


def test_plugin_and_recipe():
    reports = check_plugin("kfac-lab-ekfac")
    assert {report.slot for report in reports} >= {"block", "recipe"}
    assert all(report.passed for report in reports), "\n".join(map(str, reports))
