"""What a cell shows of a record and of a run: a line, and its recipe."""

import torch
from invariants.helpers import run_of

import kfac_lab as kl


def test_a_record_is_a_line_with_the_numbers_that_there_are() -> None:
    told = repr(kl.StepRecord(step=7, loss=torch.tensor(0.123456), rho=0.5, seconds=1.5))
    assert told == "StepRecord(step 7, loss 0.1235, ρ 0.5, seconds 1.5)"
    record = run_of().advance(2).history.records[-1]
    assert len(repr(record)) < 160 and "tensor" not in repr(record) and "λ" in repr(record)


def test_a_run_shows_its_recipe() -> None:
    run = run_of(damping="constant(lam=0.25)").advance(1)
    assert "step 1;" in repr(run) and "constant(lam=0.25)" in repr(run)
    page = run._repr_html_()
    assert page.startswith("<pre>") and "constant(lam=0.25)" in page and "loss" in page
    run.problem.title = "<b>"
    assert "<b>" not in run._repr_html_() and "&lt;b&gt;" in run._repr_html_()
