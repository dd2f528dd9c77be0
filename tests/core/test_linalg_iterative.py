"""Newton-Schulz (section 8): the residual squares at every step."""

from __future__ import annotations

import math

import pytest
import torch
from devices import here
from torch import Tensor

from kfac_lab.core import iterative, linalg
from kfac_lab.core.iterative import newton_schulz_inverse, steps_from
from kfac_lab.errors import NumericalError

F64 = torch.float64


def covariance(d: int, rows: int, seed: int = 0) -> Tensor:
    x = torch.randn(rows, d, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return x.T @ x / rows


def damped(matrix: Tensor, shift: float) -> Tensor:
    return matrix + shift * torch.eye(len(matrix), dtype=matrix.dtype)


def relative(got: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(got.double() - expected) / torch.linalg.norm(expected))


def status(call, *args, **kwargs) -> float:
    attempt = linalg.Attempt()
    with attempt:
        call(*args, **kwargs)
    (value,) = linalg.host(attempt.flags())
    return value


@pytest.mark.parametrize("shift", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("rows", [12, 60])
def test_cold_start_against_dense(shift, rows):
    m = covariance(20, rows)
    a = damped(m, shift)
    expected = torch.linalg.inv(a)
    inverse = newton_schulz_inverse(m, torch.tensor(shift, dtype=F64))
    assert status(newton_schulz_inverse, m, shift) == 1.0
    tolerance = 1e-14 * float(torch.linalg.cond(a)) + 1e-11
    assert relative(inverse, expected) < tolerance
    assert torch.equal(inverse, inverse.T)


@pytest.mark.parametrize("shift", [1e-2, 1e-3, 1e-4])
def test_float32_is_as_accurate_as_cholesky(shift):
    # half of the eigenvalues are those of the damping: condition 1e3 to 1e5
    m = covariance(60, 30)
    expected = torch.linalg.inv(damped(m, shift))
    assert status(newton_schulz_inverse, m.float(), shift) == 1.0
    error = relative(newton_schulz_inverse(m.float(), shift), expected)
    assert error < 3 * relative(linalg.damped_inverse(m.float(), shift), expected) + 1e-6


def test_the_residual_squares_at_every_step(monkeypatch):
    monkeypatch.setattr(iterative, "tolerance", lambda _: math.inf)
    a = damped(covariance(6, 12), 0.1)
    eye = torch.eye(6, dtype=F64)
    error = covariance(6, 12, seed=1)
    error = 0.8 * error / torch.linalg.matrix_norm(error)
    root = torch.linalg.inv(torch.linalg.cholesky(a))
    x = root.T @ (eye - error) @ root
    residual = eye - a @ x
    for _ in range(9):
        x = newton_schulz_inverse(a, previous=x, iterations=1)
        torch.testing.assert_close(eye - a @ x, residual @ residual, rtol=1e-9, atol=1e-13)
        residual = eye - a @ x
        if torch.linalg.matrix_norm(residual) < 1e-12:
            break
    else:
        pytest.fail("did not converge")


def test_scaled_steps_are_fewer_and_their_number_is_foretold():
    for dtype, smallest in ((torch.float32, 1e-4), (F64, 1e-8)):
        scaled, plain, low = steps_from(smallest, dtype), 0, smallest
        while 1.0 - low > torch.finfo(dtype).eps:
            low, plain = low * (2.0 - low), plain + 1
        assert scaled <= 0.7 * plain
    spectrum = torch.logspace(-4, 0, 9, dtype=F64)
    m = torch.diag(spectrum - 1e-4)
    steps = steps_from(2e-4 / (1 + 2e-4), F64)
    assert status(newton_schulz_inverse, m, 1e-4, iterations=steps) == 1.0
    assert status(newton_schulz_inverse, m, 1e-4, iterations=steps - 4) == 0.0
    inverse = newton_schulz_inverse(m, 1e-4, iterations=steps)
    assert relative(inverse, torch.diag(1 / spectrum)) < 1e-11


def test_warm_start_is_taken_when_near_and_left_when_far():
    m, shift = covariance(10, 7), 1e-3
    few = steps_from(0.1, F64)
    exact = torch.linalg.inv(damped(m, shift))
    near = torch.linalg.inv(damped(1.05 * m, 1.1 * shift))
    far, poison = 3.0 * exact, exact * float("nan")
    assert status(newton_schulz_inverse, m, shift, near, few) == 1.0
    assert status(newton_schulz_inverse, m, shift, None, few) == 0.0
    for previous in (far, poison, torch.zeros_like(exact)):
        assert status(newton_schulz_inverse, m, shift, previous, few) == 0.0
        assert status(newton_schulz_inverse, m, shift, previous) == 1.0  # cold, with steps enough
        assert relative(newton_schulz_inverse(m, shift, previous), exact) < 1e-9
    assert relative(newton_schulz_inverse(m, shift, near, few), exact) < 1e-9


def test_warm_start_in_float32_survives_a_bad_condition():
    m, shift = covariance(60, 30).float(), 1e-4
    previous = linalg.damped_inverse(1.02 * m, 1.1 * shift)
    assert status(newton_schulz_inverse, m, shift, previous, steps_from(0.1)) == 1.0


@pytest.mark.host("nobody looks outside an attempt on an accelerator")
def test_too_few_steps_fall_back_to_the_direct_method_without_jitter():
    m, shift = covariance(8, 20), 0.1
    exact = torch.linalg.inv(damped(m, shift))
    assert relative(newton_schulz_inverse(m, shift, iterations=2), exact) < 1e-12


def test_an_indefinite_matrix_is_not_taken_for_inverted():
    m = torch.diag(torch.tensor([-0.5, 1.0, 2.0], dtype=F64))
    assert status(newton_schulz_inverse, m, 0.1) == 0.0
    if here().type != "cpu":
        return  # nobody looks outside an attempt there
    with pytest.raises(NumericalError, match=r"layer 2\.weight, G"):
        with linalg.label("layer 2.weight", "G"):
            newton_schulz_inverse(m, 0.1)


def test_a_shift_of_zero_serves_where_the_matrix_is_definite():
    m = covariance(5, 40)
    assert relative(newton_schulz_inverse(m), torch.linalg.inv(m)) < 1e-11
