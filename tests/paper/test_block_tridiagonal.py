"""The inverse of section 4.3 against dense matrices; what must not pass for its damping."""

import pytest
import torch
from paper.chain_dense import (
    GAMMA,
    STRENGTH,
    Table,
    assembled,
    build,
    close,
    dense_blocks,
    eye,
    flat,
    pis,
    precision,
    vec,
    whole,
)

from kfac_lab.paper.block_diagonal import BlockDiagonal
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal

NETS = [(3, 4), (3, 4, 2), (4, 2, 5), (3, 5, 2, 4), (4, 3, 1, 3, 2), (2, 3, 4, 3, 2, 3)]


NETS += [(3, 3, 3, 3)]  # where a matrix in the place of another is no matter of shapes


# --- the inverse ----------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", [BlockTridiagonal(), BlockTridiagonal(sigma="smith")])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cases", [3, 40])
@pytest.mark.parametrize("dims", NETS)
def test_it_is_the_inverse_of_the_chain(dims, cases, bias, structure) -> None:
    table = Table(dims, cases, bias)
    found = assembled(build(table, structure=structure), table)
    close(found, precision(dense_blocks(table), table.links))


@pytest.mark.parametrize("cases", [3, 40])
@pytest.mark.parametrize("dims", NETS)
def test_oracle_13_tridiagonal_blocks_are_kept_and_the_inverse_is_tridiagonal(dims, cases) -> None:
    table = Table(dims, cases)
    found = assembled(build(table), table)
    sizes = [layer.d_out * layer.d_in for layer in table.layers]
    covariance = torch.linalg.inv(found)
    expected = dense_blocks(table)
    scale = whole(expected).abs().max()
    for i, rows in enumerate(covariance.split(sizes, 0)):
        for j, block in enumerate(rows.split(sizes, 1)):
            if abs(i - j) <= 1:
                assert (block - expected[i][j]).abs().max() < 1e-9 * scale
    for i, rows in enumerate(found.split(sizes, 0)):
        for j, block in enumerate(rows.split(sizes, 1)):
            assert abs(i - j) <= 1 or block.abs().max() == 0
    assert (found - found.t()).abs().max() < 1e-12 * found.abs().max()
    assert torch.linalg.eigvalsh(found).min() > 0


@pytest.mark.parametrize("cases", [3, 40])
def test_oracle_14_one_and_two_layers_are_exact(cases) -> None:
    one = Table((3, 4), cases)
    close(assembled(build(one), one), torch.linalg.inv(whole(dense_blocks(one))))
    same = build(one, structure=BlockDiagonal())
    close(assembled(build(one), one), assembled(same, one), 1e-14)
    for dims in ((3, 4, 2), (2, 3, 5), (5, 2, 2)):
        two = Table(dims, cases)
        close(assembled(build(two), two), torch.linalg.inv(whole(dense_blocks(two))))


@pytest.mark.parametrize("dims", [d for d in NETS if len(d) > 3])
def test_oracle_15_traces_and_entropies(dims) -> None:
    table = Table(dims)
    tilde = whole(dense_blocks(table))
    hat_inverse = assembled(build(table), table)
    breve_inverse = assembled(build(table, structure=BlockDiagonal()), table)
    n = len(tilde)
    assert (hat_inverse @ tilde).trace().item() == pytest.approx(n, rel=1e-9)
    assert (breve_inverse @ tilde).trace().item() == pytest.approx(n, rel=1e-9)
    least, hat, breve = tilde.logdet(), -hat_inverse.logdet(), -breve_inverse.logdet()
    assert least < hat - 1e-6 and hat < breve - 1e-6


@pytest.mark.parametrize("dims", NETS)
def test_oracle_16_direction_does_not_matter(dims) -> None:
    table = Table(dims)
    forth = assembled(build(table), table)
    table.links = [(j, i) for i, j in reversed(table.links)]
    close(assembled(build(table), table), forth)


def test_oracle_16_without_correlation_it_is_block_diagonal() -> None:
    table = Table((3, 5, 2, 4))
    for i, j in table.links:
        table.crosses[i, j] = tuple(x * 0 for x in table.cross(i, j))
    expected = assembled(build(table, structure=BlockDiagonal()), table)
    for sigma in ("eigh", "smith"):
        found = build(table, structure=BlockTridiagonal(sigma=sigma))
        close(assembled(found, table), expected, 1e-12)


@pytest.mark.parametrize("gamma", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("dims", [d for d in NETS if len(d) > 2])
def test_oracle_18_correlations_stay_below_one(dims, gamma) -> None:
    """Also where N < d, and where the homogeneous 1 of both layers is perfectly correlated."""
    table = Table(dims, cases=3)
    strength = STRENGTH._replace(gamma=gamma)
    for link in build(table, strength=strength).links:
        assert 0 <= link.sigma.largest < 1
    pi = pis(table)
    for i, j in table.links:
        A, G = table.cross(i, j)
        for cross, name, shifts in ((A, "A", (pi[i], pi[j])), (G, "G", (1 / pi[i], 1 / pi[j]))):
            low, high = (
                torch.linalg.inv(torch.linalg.cholesky(m[name] + s * gamma * eye(m[name])))
                for m, s in zip((table[i], table[j]), shifts, strict=True)
            )
            s = torch.linalg.svdvals(low @ cross @ high.t()) ** 2
            assert s.max() < 1


# --- the damping: what must not pass --------------------------------------------------------------


def test_the_known_mistakes_are_told_apart() -> None:
    table = Table((3, 5, 2, 4))
    found = assembled(build(table), table)

    def differs(blocks):
        wrong = precision(blocks, table.links)
        return (found - wrong).abs().max() > 1e-3 * found.abs().max()

    pi = pis(table)
    assert not differs(dense_blocks(table))
    assert differs(dense_blocks(table, damp_cross=True))  # off-diagonal factors damped
    assert differs(dense_blocks(table, pi=[pi[0], *pi[:-1]]))  # the π of the layer before
    assert differs(dense_blocks(table, gamma=0.0 + GAMMA**2))  # γ² in place of γ


def test_each_sweep_reads_what_the_one_before_left() -> None:
    """In place, Ξ and Ξᵀ would propagate through the whole chain."""
    table = Table((3, 5, 2, 4))
    found = build(table)
    v = vec(table)
    y = list(v)
    for link in reversed(found.links):  # the mistake: y[upper] in place of v[upper]
        y[link.lower] = y[link.lower] - link.psi_g @ y[link.upper] @ link.psi_a.t()
    z = [link.sigma.apply(y[link.lower]) for link in found.links]
    z.append(found.inverses[-1].apply(y[-1]))
    for link in found.links:
        z[link.upper] = z[link.upper] - link.psi_g.t() @ z[link.lower] @ link.psi_a
    assert (flat(z) - flat(found.apply(v))).norm() > 1e-3 * flat(z).norm()


def test_psi_carries_the_damping_of_the_upper_layer() -> None:
    table = Table((3, 5, 2))
    (link,) = build(table).links
    pi = pis(table)[1]
    A, G = table.cross(0, 1)
    close(link.psi_a, A @ torch.linalg.inv(table[1]["A"] + pi * GAMMA * eye(table[1]["A"])))
    close(link.psi_g, G @ torch.linalg.inv(table[1]["G"] + GAMMA / pi * eye(table[1]["G"])))
