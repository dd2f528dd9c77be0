"""Runs of today against recorded ones: bit for bit where they were recorded, close elsewhere."""

import json
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cases as known  # noqa: E402  (beside this file, which no package holds)
import record  # noqa: E402

RECORDED = json.loads(record.FILE.read_text())
CASES = dict(known.cases())


def test_every_case_is_recorded_and_no_other() -> None:
    assert set(CASES) == set(RECORDED["cases"])


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_run_goes_as_it_was_recorded(name: str, default_device: torch.device) -> None:
    before = RECORDED["cases"][name]
    if name.startswith("muon") and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"torch {torch.__version__} has no Muon")
    if name == "odd model" and record.mask() != RECORDED["mask"]:
        pytest.skip("this build of torch draws other dropout masks than the recording's")
    losses, digest = known.played(CASES[name])
    digits = 1e-3 if "float32" in name else 1e-6
    assert losses == pytest.approx(before["losses"], rel=digits)
    if default_device.type == "cpu" and RECORDED["place"] == record.place():
        assert digest == before["digest"], "bit for bit: record.py says when to record anew"


def test_a_digest_tells_another_seed() -> None:
    other = known.running("paper", damping="levenberg_marquardt(lam=150.0001)")
    assert known.played(other)[1] != RECORDED["cases"]["paper"]["digest"]
