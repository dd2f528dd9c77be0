"""Damped inverses against dense float64 solves."""

from __future__ import annotations

import contextlib
import itertools
import warnings

import pytest
import torch
from devices import here
from oracles.matrices import covariance, dense_inverse
from torch import Tensor

from kfac_lab.core import iterative, linalg
from kfac_lab.core import kronecker_sum as ks
from kfac_lab.core.linalg.symmetric import entries_finite

F64 = torch.float64


NO_READ = ["item", "tolist", "numpy", "cpu", "nonzero"]
NO_READ += ["__bool__", "__float__", "__int__", "__index__", "__array__"]


@contextlib.contextmanager
def no_host_read():
    """Any look at a tensor's value raises."""

    def forbidden(*_args, **_kwargs):
        raise AssertionError("read from the device")

    with pytest.MonkeyPatch.context() as patch:
        for name in NO_READ:
            patch.setattr(torch.Tensor, name, forbidden)
        patch.setattr(torch, "is_nonzero", forbidden)
        yield


# ---- host ----------------------------------------------------------------------------------------


def test_host_reads_everything_in_one_transfer_and_keeps_order(monkeypatch):
    transfers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: transfers.append(t) or tolist(t))
    mixed = [torch.tensor(2.5), torch.tensor(True), torch.tensor(1 / 3, dtype=F64)]
    mixed += [torch.tensor(16777217), torch.tensor(float("nan")), torch.tensor([[7.0]])]
    values = linalg.host(mixed)
    assert len(transfers) == 1
    assert values[:4] == [2.5, 1.0, 1 / 3, 16777217.0] and values[4] != values[4]
    assert values[5] == 7.0 and all(type(v) is float for v in values)
    assert linalg.host([]) == []


def test_plain_calls_read_through_host_only(monkeypatch):
    seen = []
    host = linalg.reading.transfer
    monkeypatch.setattr(linalg.reading, "transfer", lambda ts: seen.append(len(ts)) or host(ts))
    linalg.damped_inverse(covariance(4), 0.1)
    assert seen == ([1] if here().type == "cpu" else [])  # an accelerator waits for none


# ---- against dense -------------------------------------------------------------------------------

SHIFTS = [0.3, torch.tensor(0.3, dtype=F64), torch.tensor(0.3)]


@pytest.mark.parametrize("shift", SHIFTS, ids=["float", "float64", "float32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inverses_and_roots_against_dense(shift, dtype):
    m = covariance(6, rows=4)
    expected = dense_inverse(m, float(shift))
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == F64 else {"rtol": 2e-5, "atol": 2e-5}
    given = m.to(dtype)
    before = given.clone()
    inverse = linalg.damped_inverse(given, shift)
    root = linalg.inverse_root(given, shift)
    eigen = linalg.eigh(given)
    symmetric = eigen.root(shift)
    v = torch.ones(6, 2, dtype=dtype)
    for result in (inverse, root @ root.T, eigen.inverse(shift), symmetric @ symmetric):
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), expected, **tolerance)
    half = eigen.root(shift, 0.5)
    torch.testing.assert_close(
        (half @ half @ inverse).double(), torch.eye(6, dtype=F64), **tolerance
    )
    torch.testing.assert_close(eigen.apply(v, shift).double(), expected @ v.double(), **tolerance)
    for result in (inverse, eigen.inverse(shift), symmetric, half):
        assert torch.equal(result, result.T)
    assert torch.equal(given, before)


def test_the_accelerator_path_of_the_inverse_is_the_same_inverse():
    m = covariance(5)
    (root,), ok = linalg.cholesky_root(m)
    (inverse,), _ = linalg.cholesky_inverse(m)
    assert ok
    torch.testing.assert_close(root @ root.T, inverse, rtol=1e-12, atol=1e-12)


def test_an_unsymmetric_matrix_is_symmetrised_first():
    m = covariance(4)
    skew = torch.triu(torch.ones(4, 4, dtype=F64), 1)
    skew = skew - skew.T
    for call in (linalg.damped_inverse, linalg.inverse_root, iterative.newton_schulz_inverse):
        torch.testing.assert_close(call(m + 0.3 * skew, 0.1), call(m, 0.1), rtol=1e-9, atol=1e-9)
    assert torch.equal(linalg.symmetrise(m + skew), linalg.symmetrise(m + skew).T)


def test_one_decomposition_serves_every_shift():
    m = covariance(5, rows=3)
    eigen = linalg.eigh(m)
    assert (eigen.values >= 0).all()
    for shift in (1e-3, 0.1, 2.0):
        expected = dense_inverse(m, shift)
        torch.testing.assert_close(eigen.inverse(shift), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_dead_unit_and_a_factor_of_zeros_are_finite_once_damped(dtype):
    dead = covariance(5).to(dtype)
    dead[2] = dead[:, 2] = 0.0
    for m, shift in itertools.product((dead, torch.zeros(5, 5, dtype=dtype)), (1e-3, 0.5)):
        expected = dense_inverse(m, shift)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            results = [
                linalg.damped_inverse(m, shift),
                linalg.inverse_root(m, shift) @ linalg.inverse_root(m, shift).T,
                linalg.eigh(m).inverse(shift),
                iterative.newton_schulz_inverse(m, shift),
            ]
        for result in results:
            error = torch.linalg.matrix_norm(result.double() - expected)
            assert error <= 1e-3 * torch.linalg.matrix_norm(expected)


# ---- every function: no host read, meta ----------------------------------------------------------


def everything(a: Tensor, b: Tensor, x1: Tensor, x2: Tensor, v: Tensor, shift) -> list[Tensor]:
    """Calls all there is on A [dA, dA], B [dB, dB], x1 [rA, dA], x2 [rB, dB], V [dB, dA]."""
    c, d = x1.mT @ x1 * 0.1, x2.mT @ x2 * 0.1
    eigen_a, eigen_b = linalg.eigh(a), linalg.eigh(b)
    inverse = linalg.damped_inverse(a, shift)
    root_a, root_b = linalg.inverse_root(a, shift), linalg.inverse_root(b, shift)
    sums = [
        *(ks.kronecker_sum_inverse(a, b, c, d, s, m) for s in (1, -1) for m in ("eigh", "smith")),
        ks.kronecker_difference_inverse(root_a, root_b, 0.1 * x1, 0.1 * x2),
        ks.eigenbasis_inverse(eigen_a, eigen_b, shift),
    ]
    return [
        linalg.symmetrise(a),
        inverse,
        root_a,
        eigen_a.inverse(shift),
        eigen_a.root(shift),
        eigen_b.apply(v, shift),
        iterative.newton_schulz_inverse(a, shift),
        iterative.newton_schulz_inverse(a, shift, inverse),
        *(s.apply(v) for s in sums),
    ]


def arguments(dtype=F64, device="cpu", shift=0.2):
    a, b = covariance(5) + torch.eye(5, dtype=F64), covariance(4, seed=1) + torch.eye(4, dtype=F64)
    x1, x2 = covariance(5, seed=2)[:3], covariance(4, seed=3)[:2]
    v = covariance(9, seed=4)[:4, :5]
    strength = torch.tensor(shift, dtype=F64, device=device)
    return (*(t.to(device=device, dtype=dtype) for t in (a, b, x1, x2, v)), strength)


def test_nothing_reads_from_the_host_inside_an_attempt():
    given = arguments()
    poisoned = [t * float("nan") for t in given]
    attempts = [linalg.Attempt(), linalg.Attempt()]
    with no_host_read():
        with attempts[0]:
            results = everything(*given)
        with attempts[1]:
            everything(*poisoned)
        flags = [attempt.flags() for attempt in attempts]
        jitter = [attempt.jitter for attempt in attempts]
    good, bad = (linalg.host(f) for f in flags)
    assert set(good) == {1.0} and 1.0 not in bad and jitter == [{}, {}]
    assert all(r.isfinite().all() for r in results)
    again = attempts[0].escalate([linalg.Failure(c, True) for c in attempts[0].calls])
    with no_host_read(), again:
        everything(*given)
        assert again.jitter


def test_only_eigh_waits_for_the_accelerator(cuda):
    a, b, x1, x2, v, shift = arguments(torch.float32, cuda)
    on_cpu = arguments(torch.float32)
    eigen_a, eigen_b = linalg.eigh(a), linalg.eigh(b)

    def work(a, b, x1, x2, v, shift, eigen_a, eigen_b):
        inverse = linalg.damped_inverse(a, shift)
        return [
            inverse,
            linalg.inverse_root(a, shift),
            iterative.newton_schulz_inverse(a, 0.2, inverse),
            ks.kronecker_sum_inverse(a, b, x1.mT @ x1, x2.mT @ x2, 1, "smith").apply(v),
            ks.eigenbasis_inverse(eigen_a, eigen_b, shift).apply(v),
            eigen_b.apply(v, shift),
        ]

    attempt = linalg.Attempt()
    work(a, b, x1, x2, v, shift, eigen_a, eigen_b)  # loads the libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        with attempt:
            results = work(a, b, x1, x2, v, shift, eigen_a, eigen_b)
        flags = attempt.flags()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert set(linalg.host(flags)) == {1.0}
    expected = work(*on_cpu, linalg.eigh(on_cpu[0]), linalg.eigh(on_cpu[1]))
    for got, want in zip(results, expected, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-3)


def test_everything_runs_on_the_meta_device():
    on_cpu = everything(*arguments())
    attempt = linalg.Attempt()
    with attempt:
        on_meta = everything(*arguments(device="meta"))
    plain = everything(*arguments(device="meta"))
    for real, meta, other in zip(on_cpu, on_meta, plain, strict=True):
        assert meta.device.type == other.device.type == "meta"
        assert meta.shape == other.shape == real.shape and meta.dtype == real.dtype
    assert all(flag.device.type == "meta" for flag in attempt.flags())
    assert attempt.escalate([linalg.Failure(c, True) for c in attempt.calls]) is not None


def test_float32_stays_float32_at_every_level():
    given = arguments(torch.float32)
    attempt, levels = linalg.Attempt(), 0
    while attempt is not None:
        with attempt:
            results = everything(*given)
        assert all(r.dtype == torch.float32 and r.isfinite().all() for r in results)
        attempt = attempt.escalate([linalg.Failure(c, True) for c in attempt.calls])
        levels += 1
    assert levels == len(linalg.LADDER) + 1  # the iterative ones have one more: the direct method


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_tells_whether_all_entries_are_finite(dtype: torch.dtype) -> None:
    """As isfinite tells entry by entry: NaN and either infinity anywhere, and large finite ones."""
    plain = torch.randn(7, 7, dtype=dtype) * (torch.finfo(dtype).max / 8)
    assert bool(entries_finite(plain)) and bool(entries_finite(plain[:0]))
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in ((0, 0), (3, 5), (6, 6)):
            wrong = plain.clone()
            wrong[place] = bad
            assert not torch.isfinite(wrong).all() and not entries_finite(wrong)
