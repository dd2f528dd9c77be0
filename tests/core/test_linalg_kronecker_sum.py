"""(A ⊗ B ± C ⊗ D)⁻¹ against the dense matrix (section 4.3, appendix B)."""

from __future__ import annotations

import pytest
import torch
from devices import here
from torch import Tensor

from kfac_lab.core import kronecker_sum as ks
from kfac_lab.core import linalg
from kfac_lab.errors import NumericalError

F64 = torch.float64


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def vec(matrix: Tensor) -> Tensor:
    return matrix.T.reshape(-1)  # columns on top of each other


def unvec(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(like.shape[1], like.shape[0]).T


def dense(a: Tensor, b: Tensor, c: Tensor, d: Tensor, sign: int, v: Tensor) -> Tensor:
    return unvec(torch.linalg.solve(torch.kron(a, b) + sign * torch.kron(c, d), vec(v)), v)


def chain(low: int, high: int, rows: int, shift: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Damped diagonal blocks and the undamped coupling of a joint second moment."""
    x = draw(rows, low, seed=seed)
    y = torch.cat([x, draw(rows, high, seed=seed + 1)], 1) @ draw(low + high, high, seed=seed + 2)
    joint = torch.cat([x, y], 1)
    joint = joint.T @ joint / rows
    eye = torch.eye(low + high, dtype=F64)
    damped = joint + shift * eye
    return damped[:low, :low], damped[low:, low:], joint[:low, low:]


def factors(da: int, ra: int, db: int, rb: int, shift: float = 0.05) -> dict[str, Tensor]:
    """A, B of the lower layer, C, D as section 4.3 makes them, and the thin roots."""
    a, a_high, a_cross = chain(da, ra, 3 * (da + ra), shift, seed=10)
    b, b_high, b_cross = chain(db, rb, 3 * (db + rb), shift, seed=20)
    c = a_cross @ torch.linalg.solve(a_high, a_cross.T)
    d = b_cross @ torch.linalg.solve(b_high, b_cross.T)
    root_a, root_b = torch.linalg.cholesky(a.inverse()), torch.linalg.cholesky(b.inverse())
    high_a, high_b = (
        torch.linalg.cholesky(a_high.inverse()),
        torch.linalg.cholesky(b_high.inverse()),
    )
    return {
        **{"a": a, "b": b, "c": c, "d": d, "root_a": root_a, "root_b": root_b},
        "x1": high_a.T @ a_cross.T @ root_a,
        "x2": high_b.T @ b_cross.T @ root_b,
        "v": draw(db, da, seed=30),
    }


SIZES = [(5, 3, 4, 2), (3, 5, 6, 4), (6, 2, 3, 5), (4, 4, 4, 4), (5, 1, 2, 7)]


def relative(got: Tensor, expected: Tensor) -> float:
    return float(torch.linalg.norm(got.double() - expected) / torch.linalg.norm(expected))


def test_the_vec_convention_and_that_the_other_order_is_wrong():
    f = factors(4, 2, 4, 3)
    v = f["v"]
    got = ks.kronecker_sum_inverse(f["a"], f["b"], f["c"], f["d"]).apply(v)
    torch.testing.assert_close(f["b"] @ got @ f["a"].T - f["d"] @ got @ f["c"].T, v)
    assert relative(got, dense(f["a"], f["b"], f["c"], f["d"], -1, v)) < 1e-12
    swapped = unvec(
        torch.linalg.solve(
            torch.kron(f["b"], f["a"]) - torch.kron(f["d"], f["c"]),
            vec(v),
        ),
        v,
    )
    assert relative(got, swapped) > 0.1  # G ⊗ Ā in place of Ā ⊗ G: the oracle notices
    assert relative(got, dense(f["a"], f["b"], f["c"], f["d"], 1, v)) > 0.1


@pytest.mark.parametrize("method", ["eigh", "smith"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("sizes", SIZES)
def test_against_dense_with_both_signs(sizes, sign, method):
    f = factors(*sizes)
    expected = dense(f["a"], f["b"], f["c"], f["d"], sign, f["v"])
    inverse = ks.kronecker_sum_inverse(f["a"], f["b"], f["c"], f["d"], sign, method, iterations=12)
    assert isinstance(inverse, ks.KroneckerSumInverse)
    assert relative(inverse.apply(f["v"]), expected) < 1e-10
    f = {k: t.float() for k, t in f.items()}
    inverse = ks.kronecker_sum_inverse(f["a"], f["b"], f["c"], f["d"], sign, method, iterations=12)
    got = inverse.apply(f["v"])
    assert got.dtype == torch.float32 and relative(got, expected) < 1e-3


@pytest.mark.parametrize("method", ["eigh", "smith"])
@pytest.mark.parametrize("sign", [1, -1])
def test_rank_deficient_and_vanishing_second_term(sign, method):
    f = factors(5, 2, 4, 1)
    assert torch.linalg.matrix_rank(f["c"]) == 2 and torch.linalg.matrix_rank(f["d"]) == 1
    for scale in (1.0, 0.0):
        c, d = f["c"] * scale, f["d"]
        got = ks.kronecker_sum_inverse(f["a"], f["b"], c, d, sign, method).apply(f["v"])
        assert relative(got, dense(f["a"], f["b"], c, d, sign, f["v"])) < 1e-10


def test_plus_sign_beyond_one_needs_the_eigenbasis():
    # with the plus sign s may be anything; Smith's series would diverge and says so
    f = factors(4, 3, 3, 2)
    c, d = 9.0 * f["c"], 9.0 * f["d"]
    expected = dense(f["a"], f["b"], c, d, 1, f["v"])
    assert (
        relative(ks.kronecker_sum_inverse(f["a"], f["b"], c, d, 1).apply(f["v"]), expected) < 1e-10
    )
    attempt = linalg.Attempt()
    with attempt:
        ks.kronecker_sum_inverse(f["a"], f["b"], c, d, 1, "smith")
    failed = attempt.failed(linalg.host(attempt.flags()))
    assert "Smith iteration failed" in str(attempt.error(failed))
    if here().type == "cpu":  # elsewhere nobody looks outside an attempt
        with pytest.raises(NumericalError, match="Smith iteration failed"):
            ks.kronecker_sum_inverse(f["a"], f["b"], c, d, 1, "smith")


def test_smith_takes_more_passes_where_the_first_were_too_few():
    f = factors(5, 3, 4, 2)
    given = (f["a"], f["b"], f["c"], f["d"])
    attempt = linalg.Attempt()
    with attempt:
        poor = ks.kronecker_sum_inverse(*given, method="smith", iterations=1)
    failed = attempt.failed(linalg.host(attempt.flags()))
    assert [x.call.operation for x in failed] == ["Smith iteration"]
    assert poor.apply(f["v"]).isnan().all()
    while (again := attempt.escalate(failed)) is not None:
        with (attempt := again):
            got = ks.kronecker_sum_inverse(*given, method="smith", iterations=1)
        failed = attempt.failed(linalg.host(attempt.flags()))
    assert not failed and len(got.left_powers) > 1 and got.remainder < 1e-7
    assert relative(got.apply(f["v"]), dense(*given, -1, f["v"])) < 1e-7
    if here().type == "cpu":  # elsewhere nobody looks outside an attempt
        alone = ks.kronecker_sum_inverse(*given, method="smith", iterations=1)
        assert torch.equal(alone.apply(f["v"]), got.apply(f["v"]))


@pytest.mark.parametrize("give_inverses", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
def test_the_economical_difference(sizes, give_inverses, monkeypatch):
    f = factors(*sizes)
    full = ks.kronecker_sum_inverse(f["a"], f["b"], f["c"], f["d"])
    decomposed, eigh = [], linalg.eigh
    monkeypatch.setattr(linalg, "eigh", lambda m: decomposed.append(len(m)) or eigh(m))
    extra = (f["a"].inverse(), f["b"].inverse()) if give_inverses else ()
    thin = ks.kronecker_difference_inverse(f["root_a"], f["root_b"], f["x1"], f["x2"], *extra)
    da, ra, db, rb = sizes
    assert decomposed == [min(da, ra), min(db, rb)]  # the smaller Gram matrix
    expected = dense(f["a"], f["b"], f["c"], f["d"], -1, f["v"])
    assert relative(thin.apply(f["v"]), expected) < 1e-10
    assert relative(thin.apply(f["v"]), full.apply(f["v"])) < 1e-10
    torch.testing.assert_close(thin.largest, full.largest, rtol=1e-9, atol=1e-9)
    assert 0 < thin.largest < 1

    f = {k: t.float() for k, t in f.items()}
    thin = ks.kronecker_difference_inverse(f["root_a"], f["root_b"], f["x1"], f["x2"])
    assert relative(thin.apply(f["v"]), expected) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lifting_leaves_out_directions_that_are_not_there(dtype):
    f = {k: t.to(dtype) for k, t in factors(6, 4, 5, 3).items()}
    x1, x2 = 0.5 * f["x1"], 0.5 * f["x2"]  # below one whatever is done to the rows
    x1[2] = x1[1]  # rank 3 of 4 rows
    x2[:] = 0.0  # nothing at all
    for pair in ((x1, f["x2"]), (f["x1"], x2), (x1 * 1e-12, f["x2"] * 1e-12)):
        got = ks.kronecker_difference_inverse(f["root_a"], f["root_b"], *pair).apply(f["v"])
        a, b = (torch.linalg.inv(r @ r.T).double() for r in (f["root_a"], f["root_b"]))
        m1, m2 = (x.double().T @ x.double() for x in pair)
        ia, ib = (torch.linalg.inv(f[r].double()) for r in ("root_a", "root_b"))
        expected = dense(a, b, ia.T @ m1 @ ia, ib.T @ m2 @ ib, -1, f["v"].double())
        assert relative(got, expected) < (1e-9 if dtype == F64 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_canonical_correlations_at_and_above_one_stay_finite(dtype):
    # float32 with little damping: 1 − s₂ s₁ᵀ can hit zero
    a, b = torch.eye(3, dtype=dtype), torch.eye(2, dtype=dtype)
    v = torch.ones(2, 3, dtype=dtype)
    for excess in (1.0, 1.5):
        full = ks.kronecker_sum_inverse(a, b, excess * a, excess * b)
        thin = ks.kronecker_difference_inverse(a, b, excess**0.5 * a[:2], excess**0.5 * b[:1])
        for inverse in (full, thin):
            assert inverse.apply(v).isfinite().all()
            assert float(inverse.largest) == pytest.approx(excess**2)  # and it shows


@pytest.mark.parametrize("t", [0.3, torch.tensor(2.0, dtype=F64)])
def test_unfactored_tikhonov(t):
    a, b, v = draw(4, 4, seed=1), draw(3, 3, seed=2), draw(3, 4, seed=3)
    a, b = a @ a.T, b[:, :1] @ b[:, :1].T
    eye_a, eye_b = torch.eye(4, dtype=F64), torch.eye(3, dtype=F64)
    expected = dense(a, b, float(t) * eye_a, eye_b, 1, v)
    got = ks.eigenbasis_inverse(linalg.eigh(a), linalg.eigh(b), t).apply(v)
    assert relative(got, expected) < 1e-10
    by_sum = ks.kronecker_sum_inverse(float(t) * eye_a, eye_b, a, b, 1).apply(v)
    assert relative(by_sum, expected) < 1e-10


@pytest.mark.host("nobody looks outside an attempt on an accelerator")
def test_unfactored_tikhonov_without_damping_of_a_singular_block_is_an_error():
    a = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
    with pytest.warns(RuntimeWarning), linalg.label("layer 0.weight"):
        inverse = ks.eigenbasis_inverse(linalg.eigh(a), linalg.eigh(a), 0.0)
    assert inverse.apply(a).isfinite().all()
    with pytest.raises(NumericalError, match=r"layer 0\.weight"):
        with linalg.label("layer 0.weight"):
            ks.eigenbasis_inverse(linalg.eigh(0 * a), linalg.eigh(a), 0.0)


def test_unknown_sign_and_method_are_refused():
    f = factors(3, 2, 2, 2)
    with pytest.raises(ValueError, match="sign=0 must be 1 or -1"):
        ks.kronecker_sum_inverse(f["a"], f["b"], f["c"], f["d"], 0)
    with pytest.raises(ValueError, match="method='svd' must be"):
        ks.kronecker_sum_inverse(f["a"], f["b"], f["c"], f["d"], -1, "svd")
