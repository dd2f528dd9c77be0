"""The diagonal and the identity block against gradients formed case by case."""

import pytest
import torch

from kfac_lab.core.layers import Tensors
from kfac_lab.core.state import DampingStrength, from_tree, to_tree
from kfac_lab.errors import KfacLabError
from kfac_lab.paper import diagonal
from kfac_lab.paper.diagonal import Diagonal, Identity


class Shaped(dict):
    """Moments that also tell the layer's shape."""

    shape = (3, 4)


def strength(gamma=0.3):
    return DampingStrength(
        torch.tensor(0.7), torch.tensor(gamma, dtype=torch.float64), torch.tensor(0.0)
    )


def batch(cases=6, shared=1, cotangents=1, dtype=torch.float64):
    rows = torch.randn(cases, shared, 4, dtype=dtype)
    return rows, torch.randn(cotangents, cases, shared, 3, dtype=dtype)


def moments(rows, cotangents):
    return Shaped({
        "A.diagonal": (rows**2).sum(1).mean(0),
        "G.diagonal": (cotangents**2).sum(0).mean((0, 1)),
    })  # fmt: skip


def by_definition(rows, cotangents):
    """E[Σ_c (DW)²] with DW = Σ_s g ā' of one case and cotangent: [d_out, d_in]."""
    total = 0
    for g in cotangents:
        for n in range(len(rows)):
            dw = sum(torch.outer(g[n, s], rows[n, s]) for s in range(rows.shape[1]))
            total = total + dw**2
    return total / len(rows)


@pytest.mark.parametrize("chunk", [1, 30, 2**24])
@pytest.mark.parametrize("cotangents", [1, 3])
@pytest.mark.parametrize("shared", [1, 5])
def test_the_curvature_is_the_mean_squared_gradient(shared, cotangents, chunk, monkeypatch) -> None:
    monkeypatch.setattr(diagonal, "CHUNK", chunk)
    rows, cots = batch(6, shared, cotangents)
    part_state = Diagonal().observe({}, rows, cots, 1.0)
    torch.testing.assert_close(part_state["curvature"], by_definition(rows, cots))


def test_the_curvature_opens_at_zero_and_decays() -> None:
    block = Diagonal()
    first, second = batch(), batch(4, 2, 2)
    part_state = block.observe({}, *first, 0.25)
    kept = part_state["curvature"].clone()
    torch.testing.assert_close(kept, 0.25 * by_definition(*first))
    later = block.observe(part_state, *second, 0.1)
    torch.testing.assert_close(later["curvature"], 0.9 * kept + 0.1 * by_definition(*second))
    assert torch.equal(part_state["curvature"], kept) and later is not part_state


def test_the_damped_inverse_divides_by_curvature_and_gamma_squared() -> None:
    block = Diagonal()
    rows, cots = batch()
    factored, part_state = block.factorise(moments(rows, cots), block.observe({}, rows, cots, 1.0))
    found = block.damped(factored, part_state, strength(), None)
    v = torch.randn(3, 4).double()
    curvature = torch.diag(by_definition(rows, cots).t().reshape(-1))
    dense = curvature + 0.3**2 * torch.eye(12).double()
    expected = torch.linalg.solve(dense, v.t().reshape(-1))
    torch.testing.assert_close(found.apply(v).t().reshape(-1), expected)
    torch.testing.assert_close(found.dense(), torch.linalg.inv(dense))
    product = block.product(moments(rows, cots), part_state, v)
    torch.testing.assert_close(product.t().reshape(-1), curvature @ v.t().reshape(-1))
    assert found.factors() is None


def test_nothing_observed_is_no_curvature() -> None:
    block = Diagonal()
    kept = moments(*batch())
    factored, part_state = block.factorise(kept, {})
    found = block.damped(factored, part_state, strength(), None)
    v = torch.randn(3, 4).double()
    torch.testing.assert_close(found.apply(v), v / 0.3**2)
    assert block.product(kept, part_state, v).abs().max() == 0


def test_a_dead_unit_is_damped() -> None:
    block = Diagonal()
    rows, cots = batch()
    rows[..., 1], cots[..., 2] = 0, 0
    factored, part_state = block.factorise(moments(rows, cots), block.observe({}, rows, cots, 1.0))
    assert torch.isfinite(block.damped(factored, part_state, strength(), None).scale).all()


def test_it_serves_the_fallback_for_loose_tensors() -> None:
    """One pseudo case with input 1: the batch-summed gradient, squared."""
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.zeros(2, 3).double())
    layer = Tensors(module, "", "scale", 6, torch.Size((2, 3)))
    gradient = torch.randn(2, 3).double()
    rows, cots = layer.rows_in(gradient), layer.rows_out(gradient)[None]
    for block in (Diagonal(), Identity()):
        part_state = block.observe({}, rows, cots, 1.0) if hasattr(block, "observe") else {}
        kept = moments(rows, cots)
        found = block.damped(block.factorise(kept, part_state)[0], part_state, strength(), None)
        (u,) = layer.unpack(found.apply(layer.pack([gradient])))
        divisor = gradient**2 + 0.3**2 if isinstance(block, Diagonal) else 1
        torch.testing.assert_close(u, gradient / divisor)


def test_the_identity_changes_nothing() -> None:
    block = Identity()
    assert tuple(block.wants()) == ()
    factored, part_state = block.factorise(Shaped(), {})
    found = block.damped(factored, part_state, strength(), None)
    v = torch.randn(3, 4)
    assert torch.equal(found.apply(v), v) and torch.equal(block.product({}, {}, v), v)
    assert torch.equal(found.dense(), torch.eye(12, device="cpu").double())
    assert found.factors() is None
    unknown = block.damped(block.factorise({}, {})[0], {}, strength(), None)
    assert torch.equal(unknown.apply(v), v)
    with pytest.raises(KfacLabError, match="shape"):
        unknown.dense()


@pytest.mark.parametrize("block", [Diagonal(), Identity()], ids=repr)
def test_saved_single_precision_and_without_a_host_read(block) -> None:
    def inverted(rows, cots, gamma):
        part_state = block.observe({}, rows, cots, 1.0) if hasattr(block, "observe") else {}
        part_state = block.observe(part_state, rows, cots, 0.5) if hasattr(block, "observe") else {}
        factored, part_state = block.factorise(moments(rows, cots), part_state)
        return block.damped(
            from_tree(to_tree(factored)), part_state, DampingStrength(gamma, gamma), None
        )

    found = inverted(*batch(6, 2, 2, torch.float32), 0.3)
    v = torch.randn(3, 4)
    assert found.apply(v).dtype == torch.float32
    assert torch.equal(from_tree(to_tree(found)).apply(v), found.apply(v))
    meta = [t.to("meta") for t in batch(6, 2, 2)]
    gamma = torch.empty((), dtype=torch.float64, device="meta")
    assert inverted(*meta, gamma).apply(torch.empty(3, 4, device="meta")).device.type == "meta"
