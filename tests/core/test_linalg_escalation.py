"""Where a damped inverse fails: jitter level by level, float64, an error that says where."""

from __future__ import annotations

import re

import pytest
import torch
from devices import here
from oracles.matrices import covariance, dense_inverse, with_spectrum

from kfac_lab.core import iterative, linalg
from kfac_lab.errors import NumericalError

F64 = torch.float64
ALONE = "nobody looks outside an attempt on an accelerator"

# one eigenvalue is below zero by this much against a mean of one: which level lifts it?
NEGATIVE = {1: -5e-7, 2: -5e-5, 3: -5e-3}
JITTER = {1: 1e-6, 2: 1e-4, 3: 1e-2}


@pytest.mark.host(ALONE)
@pytest.mark.parametrize("level", NEGATIVE)
def test_each_jitter_level_alone(level):
    m = with_spectrum(NEGATIVE[level], 0.7, 1.3, 2.0)
    with pytest.warns(RuntimeWarning, match=r"layer 1\.weight, Ā: .*succeeded only after"):
        with linalg.label("layer 1.weight", "Ā"):
            alone = linalg.damped_inverse(m)
    attempt: linalg.Attempt | None = linalg.Attempt()
    while attempt is not None:
        with attempt:
            found = linalg.damped_inverse(m)
        attempt = attempt.escalate(attempt.failed(linalg.host(attempt.flags())))
    assert torch.equal(found, alone)


@pytest.mark.parametrize("level", NEGATIVE)
def test_each_jitter_level_in_an_attempt(level):
    m = with_spectrum(NEGATIVE[level], 0.7, 1.3, 2.0)
    amount = JITTER[level] * m.diagonal().mean().item()
    attempt, results = linalg.Attempt(), []
    for _ in range(level):
        with attempt, linalg.label("layer 1.weight", "Ā"):
            results.append(linalg.damped_inverse(m))
        failed = attempt.failed(linalg.host(attempt.flags()))
        assert [f.call.label for f in failed] == [("layer 1.weight", "Ā")]
        assert results[-1].isnan().all()
        attempt = attempt.escalate(failed)
    with attempt, linalg.label("layer 1.weight", "Ā"):
        results.append(linalg.damped_inverse(m))
    assert attempt.failed(linalg.host(attempt.flags())) == ()
    assert attempt.escalate(()) is None
    torch.testing.assert_close(results[-1], dense_inverse(m, amount), rtol=1e-6, atol=1e-6)
    (reported,) = linalg.host([attempt.jitter["layer 1.weight, Ā"]])
    assert reported == pytest.approx(amount)


def test_the_last_level_is_float64():
    # at the very edge of the bound: what the largest jitter leaves is negative only by rounding
    for n in range(2, 400):
        m = torch.ones(n)
        for _ in range(40):
            edge = 0.01 * m.double().abs().mean()
            m[0] = -edge.float()
        m[0] = torch.nextafter(m[0], torch.tensor(float((-1) ** n)))
        attempts = [linalg.Attempt()]
        while attempts[-1] is not None:
            with attempts[-1]:
                inverse = linalg.damped_inverse(torch.diag(m))
            flags = linalg.host(attempts[-1].flags())
            attempts.append(attempts[-1].escalate(attempts[-1].failed(flags)))
        if len(attempts) == 6 and flags == [1.0]:
            break
    else:
        pytest.fail("no matrix needed float64")
    assert inverse.dtype == torch.float32 and inverse.isfinite().all()
    work, finite, jitter = linalg.prepared(torch.diag(m), 0.0, linalg.LADDER[-1])
    assert work.dtype == F64 and jitter is not None and finite


def test_only_what_failed_is_treated():
    good, bad = covariance(3), with_spectrum(-5e-5, 1.0, 2.0)

    def work():
        out = []
        for name, m in (("one", good), ("two", bad), ("three", good)):
            with linalg.label(name), linalg.label("G"):
                out += [linalg.damped_inverse(m, 0.0), linalg.damped_inverse(m, 0.1)]
        return out

    first = linalg.Attempt()
    with first:
        start = work()
    failed = first.failed(linalg.host(first.flags()))
    assert [(f.call.name, f.call.occurrence) for f in failed] == [("two, G", 0)]
    second = first.escalate(failed)
    with second:
        again = work()
    assert [c.level for c in second.calls] == [0, 0, 1, 0, 0, 0]
    assert list(second.jitter) == ["two, G"]
    for i in (0, 1, 3, 4, 5):
        assert torch.equal(start[i], again[i])
    third = second.escalate(second.failed(linalg.host(second.flags())))
    with third:
        last = work()
    assert third.failed(linalg.host(third.flags())) == () and last[2].isfinite().all()


def test_what_fails_downstream_of_a_failure_is_not_treated_for_it():
    bad = with_spectrum(-5e-7, 1.0, 2.0)

    def work():
        with linalg.label("lower"):
            root = linalg.inverse_root(bad)
        with linalg.label("chain"):
            return linalg.eigh(root.T @ root)

    first = linalg.Attempt()
    with first:
        work()
    failed = first.failed(linalg.host(first.flags()))
    assert [(f.call.name, f.finite) for f in failed] == [("lower", True), ("chain", False)]
    assert "lower" in str(first.error(failed)) and "chain:" not in str(first.error(failed))
    second = first.escalate(failed)
    with second:
        work()
    assert [c.level for c in second.calls] == [1, 0]
    assert second.failed(linalg.host(second.flags())) == ()


@pytest.mark.parametrize(
    "call",
    [
        linalg.damped_inverse,
        linalg.inverse_root,
        linalg.eigh,
        iterative.newton_schulz_inverse,
    ],
)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_is_an_error_that_names_the_matrix(call, poison):
    m = covariance(3)
    m[0, 1] = m[1, 0] = poison
    with linalg.label("layer 3.weight", "Ā"):
        attempt = linalg.Attempt()
        with attempt:
            call(m)
        failed = attempt.failed(linalg.host(attempt.flags()))
        assert len(failed) == 1 and not failed[0].finite and attempt.escalate(failed) is None
        errors = [str(attempt.error(failed))]
        if here().type == "cpu":  # elsewhere nobody looks outside an attempt
            with pytest.raises(NumericalError) as raised:
                call(m)
            errors.append(str(raised.value))
    for text in errors:
        assert re.search(r"layer 3\.weight, Ā: .* 2 of 9 entries are not", text)
        assert "No damping helps here" in text


def test_the_error_names_layer_factor_strengths_and_condition_number():
    m = with_spectrum(-3.0, 1.0, 2.0)
    attempt, tries = linalg.Attempt(), 0
    while attempt is not None:
        with attempt, linalg.label("layer 3.weight", "G"):
            linalg.damped_inverse(m, torch.tensor(0.5))
        last, tries = attempt, tries + 1
        failed = attempt.failed(linalg.host(attempt.flags()))
        attempt = attempt.escalate(failed)
    assert tries == len(linalg.LADDER)
    text = str(last.error(failed, lam=torch.tensor(150.0, dtype=F64), gamma=12.25))
    for part in (
        "layer 3.weight, G",
        "λ = 150",
        "γ = 12.25",
        "shift = 0.5",
        "condition number inf",
    ):
        assert part in text, text
    assert "a 3×3 matrix" in text and "from -2.5 to 2.5" in text and "More damping helps" in text


@pytest.mark.host(ALONE)
def test_the_inverse_of_zero_is_an_error():
    singular = covariance(3, rows=1) * 0.0
    with pytest.raises(NumericalError, match="condition number"):
        linalg.eigh(singular).inverse(0.0)


def test_eigh_that_does_not_converge_is_a_status(monkeypatch):
    def refuse(_):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", refuse)
    attempt = linalg.Attempt()
    with attempt:
        eigen = linalg.eigh(covariance(3))
    assert linalg.host(attempt.flags()) == [0.0]
    assert eigen.values.isnan().all() and eigen.vectors.isnan().all()


@pytest.mark.host(ALONE)
def test_one_s_own_factorisation_climbs_the_same_ladder():
    seen = []

    def compute(level):
        seen.append(level)
        status = torch.tensor(float(level == 4), dtype=F64)
        return linalg.Outcome((torch.tensor(1.0),), status)

    linalg.guarded("mine", compute)
    assert seen == [0, 1, 2, 3, 4]
    seen.clear()
    with pytest.raises(NumericalError, match="a matrix without a label: mine failed"):
        linalg.guarded("mine", compute, levels=3)
    assert seen == [0, 1, 2]


def test_attempts_and_labels_close_behind_themselves():
    outer, inner = linalg.Attempt(), linalg.Attempt()
    with outer, linalg.label("layer"):
        linalg.damped_inverse(covariance(2))
        with pytest.raises(KeyError), inner, linalg.label("Ā"):
            linalg.damped_inverse(covariance(2))
            raise KeyError
        linalg.damped_inverse(covariance(2))
    with outer:
        linalg.damped_inverse(covariance(2))
    linalg.damped_inverse(covariance(2))
    assert [c.label for c in outer.calls] == [("layer",), ("layer",), ()]
    assert [c.label for c in inner.calls] == [("layer", "Ā")]
    assert "3 calls" in repr(outer)
