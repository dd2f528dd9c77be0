"""F̂⁻¹ against dense matrices over all layers (oracles 13, 14, 15, 16, 18)."""

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from kfac_lab.core import linalg
from kfac_lab.core.state import DampingStrength, from_tree, to_tree
from kfac_lab.core.vector import Vec
from kfac_lab.errors import NumericalError
from kfac_lab.paper.block_diagonal import BlockDiagonal
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal
from kfac_lab.paper.diagonal import Diagonal, Identity
from kfac_lab.paper.kronecker import Kronecker

GAMMA = 0.3
STRENGTH = DampingStrength(
    torch.tensor(0.7), torch.tensor(GAMMA, dtype=torch.float64), torch.tensor(0.0)
)
NETS = [(3, 4), (3, 4, 2), (4, 2, 5), (3, 5, 2, 4), (4, 3, 1, 3, 2), (2, 3, 4, 3, 2, 3)]
NETS += [(3, 3, 3, 3)]  # where a matrix in the place of another is no matter of shapes


class Table:
    """Moments of random rows whose layers are correlated as in a network."""

    def __init__(self, dims, cases=30, bias=True, device=None, dtype=torch.float64):
        device = torch.empty(0).device if device is None else device
        depth = len(dims) - 1
        hidden = torch.randn(cases, max(dims)).double()
        score = torch.randn(cases, max(dims)).double()
        self.a, self.g = [], []
        for d_in, d_out in itertools.pairwise(dims):
            a = torch.cat([hidden[:, :d_in], torch.ones(cases, int(bias)).double()], 1)
            self.a.append(a.to(device, dtype))
            self.g.append(score[:, :d_out].to(device, dtype))
            hidden = torch.tanh(hidden @ torch.randn(max(dims), max(dims)).double()) + 0.3 * hidden
            score = score @ torch.randn(max(dims), max(dims)).double() / max(dims) ** 0.5
            score = score + 0.3 * torch.randn(cases, max(dims)).double()
        self.links = [(i, i + 1) for i in range(depth - 1)]
        self.layers = [
            SimpleNamespace(path=f"net.{i}", d_in=a.shape[1], d_out=g.shape[1])
            for i, (a, g) in enumerate(zip(self.a, self.g, strict=True))
        ]
        self.kept = [
            {"A": self.A(i, i), "G": self.G(i, i)}
            | {"A.mean": self.a[i].mean(0), "A.diagonal": self.A(i, i).diagonal()}
            | {"G.diagonal": self.G(i, i).diagonal()}
            for i in range(depth)
        ]
        self.crosses = {}

    def A(self, i, j):
        return self.a[i].t() @ self.a[j] / len(self.a[i])

    def G(self, i, j):
        return self.g[i].t() @ self.g[j] / len(self.g[i])

    def __getitem__(self, layer):
        return self.kept[layer]

    def cross(self, i, j):
        return self.crosses.setdefault((i, j), (self.A(i, j), self.G(i, j)))


def build(table, blocks=None, structure=None, strength=STRENGTH, previous=None, part_states=None):
    structure = structure or BlockTridiagonal()
    blocks = blocks or [Kronecker()] * len(table.layers)
    part_states = part_states or [{}] * len(blocks)
    factored, part_states = structure.factorise(table.layers, blocks, table, part_states)
    return structure.damped(factored, part_states, strength, previous)


# --- dense ----------------------------------------------------------------------------------------


def flat(vector):
    return torch.cat([m.t().reshape(-1) for m in vector])


def unflat(table, theta):
    sides = [(layer.d_out, layer.d_in) for layer in table.layers]
    parts = theta.split([rows * columns for rows, columns in sides])
    return Vec([p.reshape(c, r).t() for p, (r, c) in zip(parts, sides, strict=True)])


def vec(table):
    return unflat(table, torch.randn(sum(x.d_out * x.d_in for x in table.layers)).to(table.a[0]))


def assembled(preconditioner, table):
    """The matrix of the product routine, one unit vector at a time."""
    n = sum(layer.d_out * layer.d_in for layer in table.layers)
    units = torch.eye(n).double()
    return torch.stack([flat(preconditioner.apply(unflat(table, e))) for e in units], 1)


def pis(table):
    return [
        ((m["A"].trace() / len(m["A"])) / (m["G"].trace() / len(m["G"]))).sqrt() for m in table.kept
    ]


def eye(matrix):
    return torch.eye(len(matrix)).to(matrix)


def dense_blocks(table, gamma=GAMMA, damp_cross=False, pi=None):
    """F̃ in blocks, its diagonal factors damped; damp_cross is the classic mistake."""
    pi = pi or pis(table)
    depth = len(table.layers)
    blocks = [[None] * depth for _ in range(depth)]
    for i in range(depth):
        for j in range(depth):
            A, G = table.A(i, j), table.G(i, j)
            if i == j:
                A, G = A + pi[i] * gamma * eye(A), G + gamma / pi[i] * eye(G)
            elif damp_cross:
                A, G = A.clone(), G.clone()
                A.diagonal().add_(pi[i] * gamma)
                G.diagonal().add_(gamma / pi[i])
            blocks[i][j] = torch.kron(A.contiguous(), G.contiguous())
    return blocks


def whole(blocks):
    return torch.cat([torch.cat(row, 1) for row in blocks], 0)


def precision(blocks, edges):
    """The Gaussian with the given block marginals on nodes and edges of a forest.

    Precision = Σ over edges of (edge marginal)⁻¹ − Σ over nodes of (degree − 1) (node marginal)⁻¹.
    No Ψ and no Σ is formed, so the code under test is not repeated here.
    """
    sizes = [len(row[i]) for i, row in enumerate(blocks)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    where = [torch.arange(s, s + n) for s, n in zip(starts, sizes, strict=True)]
    total = torch.zeros(sum(sizes), sum(sizes)).double()
    for i in range(len(sizes)):
        degree = sum(i in edge for edge in edges)
        total[where[i][:, None], where[i]] += (1 - degree) * torch.linalg.inv(blocks[i][i])
    for i, j in edges:
        pair = whole([[blocks[i][i], blocks[i][j]], [blocks[j][i], blocks[j][j]]])
        index = torch.cat([where[i], where[j]])
        total[index[:, None], index] += torch.linalg.inv(pair)
    return total


def close(found, expected, tolerance=1e-9):
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


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


# --- chains ---------------------------------------------------------------------------------------


def test_pairs_are_neighbours_in_each_chain() -> None:
    chains = [[0, 1, 2], [3], [], [5, 4]]
    assert tuple(BlockTridiagonal().pairs(chains)) == ((0, 1), (1, 2), (5, 4))


@pytest.mark.parametrize(
    "links",
    [
        [(0, 1), (2, 3), (3, 4)],  # two chains
        [(1, 2)],  # single layers around one link
        [],
        [(3, 0), (0, 4), (4, 1)],  # any order of layers
        [(3, 4), (2, 3), (1, 2), (0, 1)],  # listed from the top
        [(0, 1), (1, 2), (4, 3), (2, 3)],  # links listed out of order, one the other way round
    ],
)
def test_any_links_give_their_own_chains(links) -> None:
    table = Table((2, 3, 4, 3, 2, 3))
    table.links = links
    close(assembled(build(table), table), precision(dense_blocks(table), links))


@dataclass(frozen=True)
class Foreign:
    """A block of a plugin: a product of two factors that nobody here knows the class of."""

    def wants(self):
        return ("A", "G")

    def factorise(self, moments, part_state):
        return (moments["A"].clone(), moments["G"].clone()), part_state

    def damped(self, factored, part_state, strength, previous):
        return Product(factored[0] + 0.2 * eye(factored[0]), factored[1] + 0.5 * eye(factored[1]))


@dataclass(frozen=True)
class Product:
    A: torch.Tensor
    G: torch.Tensor

    def apply(self, matrix):
        return torch.linalg.inv(self.G) @ matrix @ torch.linalg.inv(self.A)

    def dense(self):
        return torch.linalg.inv(torch.kron(self.A, self.G))

    def factors(self):
        return self.A, self.G


CENTERING = Kronecker(factor_a="rank1_plus_diagonal", factor_g="diagonal")
ENDS = [Identity(), Diagonal(), Kronecker(tikhonov="unfactored"), CENTERING]


@pytest.mark.parametrize("end", ENDS, ids=repr)
@pytest.mark.parametrize("place", range(5))
def test_a_block_that_is_no_product_ends_its_chain(place, end) -> None:
    table = Table((2, 3, 4, 3, 2, 3))
    blocks = [Kronecker()] * 5
    blocks[place] = end
    part_state = {}
    if isinstance(end, Diagonal):
        part_state = end.observe({}, table.a[place][:, None], table.g[place][None, :, None], 1.0)
    part_states = [part_state if i == place else {} for i in range(5)]
    found = build(table, blocks, part_states=part_states)
    dense = dense_blocks(table)
    n = len(dense[place][place])
    if isinstance(end, Identity):
        dense[place][place] = torch.eye(n).double()
    elif isinstance(end, Diagonal):
        dense[place][place] = torch.diag(part_state["curvature"].t().reshape(-1) + GAMMA**2)
    elif end is CENTERING:
        dense[place][place] = torch.kron(*found.inverses[place].matrices())
    else:
        product = torch.kron(table.A(place, place), table.G(place, place))
        dense[place][place] = product + GAMMA**2 * torch.eye(n).double()
    links = [link for link in table.links if place not in link]
    close(assembled(found, table), precision(dense, links))


@pytest.mark.parametrize(
    "block",
    [
        Foreign(),
        Kronecker(inverse="eigh", pi="frobenius"),
        Kronecker(inverse="newton_schulz"),
    ],
    ids=repr,
)
def test_a_product_of_any_making_stays_in_the_chain(block) -> None:
    table = Table((2, 3, 4, 3, 2, 3))
    blocks = [Kronecker(), block, block, Kronecker(), Kronecker()]
    found = build(table, blocks)
    dense = dense_blocks(table)
    for i in (1, 2):
        alone = block.damped(block.factorise(table[i], {})[0], {}, STRENGTH, None)
        dense[i][i] = torch.kron(*alone.factors())
    close(assembled(found, table), precision(dense, table.links), 1e-8)


# --- how it is computed ---------------------------------------------------------------------------


def test_the_smaller_side_is_decomposed(monkeypatch) -> None:
    """Σ⁻¹ needs eigenvectors of min(d, d of the next layer) only."""
    sizes = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: sizes.append(len(m)) or real(m))
    build(Table((9, 7, 3, 8, 6), 50))
    # A: inputs of 10, 8, 4, 9; G: outputs of 7, 3, 8, 6.
    assert sorted(sizes) == sorted([8, 4, 4, 3, 3, 6])


def test_dead_units_stay_finite() -> None:
    table = Table((3, 5, 2, 4))
    table.a[1][:, 2] = 0
    table.g[1][:, 0] = 0
    table.g[2].zero_()
    table = remade(table)
    found = assembled(build(table), table)
    assert torch.isfinite(found).all()
    pi = [p if torch.isfinite(p) else torch.ones(()).double() for p in pis(table)]
    close(found, precision(dense_blocks(table, pi=pi), table.links))


def remade(table):
    """The table with the moments of its rows as they are now."""
    for i, kept in enumerate(table.kept):
        kept |= {"A": table.A(i, i), "G": table.G(i, i)}
    table.crosses = {}
    return table


def test_previous_of_any_kind_is_taken_or_ignored() -> None:
    table = Table((3, 5, 2, 4), 100)
    expected = assembled(build(table), table)
    blocks = [Kronecker(inverse="newton_schulz")] * 3
    for previous in (None, object(), build(table, structure=BlockDiagonal()), build(table)):
        close(assembled(build(table, blocks, previous=previous), table), expected)
    other = build(Table((3, 4, 3, 2)))
    close(assembled(build(table, blocks, previous=other), table), expected)
    found = build(table, blocks, BlockDiagonal(), previous=build(table))
    close(assembled(found, table), assembled(build(table, structure=BlockDiagonal()), table))


def test_factored_holds_nothing_of_the_ledger_and_serves_every_candidate() -> None:
    table = Table((3, 5, 2, 4))
    structure = BlockTridiagonal()
    factored, part_states = structure.factorise(table.layers, [Kronecker()] * 3, table, [{}] * 3)
    expected = [precision(dense_blocks(table, gamma), table.links) for gamma in (0.1, 0.3, 1.0)]
    store = [*table.crosses.values(), *[(m["A"], m["G"]) for m in table.kept]]
    for pair in store:
        for tensor in pair:
            tensor.fill_(float("nan"))
    for gamma, dense in zip((0.1, 0.3, 1.0), expected, strict=True):
        strength = STRENGTH._replace(gamma=gamma)
        close(assembled(structure.damped(factored, part_states, strength, None), table), dense)


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_it_can_be_saved(sigma) -> None:
    table = Table((3, 5, 2, 4))
    structure = BlockTridiagonal(sigma=sigma)
    factored, part_states = structure.factorise(table.layers, [Kronecker()] * 3, table, [{}] * 3)
    found = structure.damped(factored, part_states, STRENGTH, None)
    again = structure.damped(*from_tree(to_tree((factored, part_states))), STRENGTH, None)
    restored = from_tree(to_tree(found))
    v = vec(table)
    assert torch.equal(flat(again.apply(v)), flat(found.apply(v)))
    assert torch.equal(flat(restored.apply(v)), flat(found.apply(v)))


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_single_precision_agrees(sigma) -> None:
    table = Table((3, 5, 2, 4))
    v = vec(table)
    expected = flat(build(table).apply(v))
    for kept in table.kept:
        kept |= {name: value.float() for name, value in kept.items()}
    table.crosses = {(i, j): tuple(x.float() for x in table.cross(i, j)) for i, j in table.links}
    found = build(table, structure=BlockTridiagonal(sigma=sigma))
    u = found.apply(Vec([m.float() for m in v]))
    assert all(m.dtype == torch.float32 for m in u)
    close(flat(u).double(), expected, 1e-3)


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_nothing_is_read_by_the_host(sigma) -> None:
    table = Table((3, 5, 2, 4), device="meta")
    gamma = torch.empty((), dtype=torch.float64, device="meta")
    strength = DampingStrength(gamma, gamma, gamma)
    found = build(table, structure=BlockTridiagonal(sigma=sigma), strength=strength)
    assert all(m.device.type == "meta" for m in found.apply(vec(table)))


def test_apply_writes_into_nothing() -> None:
    table = Table((3, 5, 2, 4))
    found, v = build(table), vec(table)
    before = flat(v)
    first = flat(found.apply(v))
    assert torch.equal(flat(v), before) and torch.equal(flat(found.apply(v)), first)


def test_a_failure_names_the_layer_and_the_factor() -> None:
    table = Table((3, 5, 2, 4))
    A, G = table.cross(1, 2)
    table.crosses[1, 2] = (A, G * float("nan"))
    if A.device.type != "cpu":  # outside an attempt nobody looks there: it is NaN
        assert torch.isnan(build(table).links[1].psi_g).all()
        return
    with pytest.raises(NumericalError, match=r"net\.1, Σ"):
        build(table)
    table.crosses[1, 2] = (A, G)
    table.kept[2]["A"] = table.kept[2]["A"] * float("nan")
    with pytest.raises(NumericalError, match=r"net\.2, Ā"):
        build(table, [Kronecker(pi="one")] * 3)


def test_an_attempt_repeats_the_same_calls() -> None:
    table = Table((3, 5, 2, 4))
    calls = []
    for _ in range(2):
        with linalg.Attempt() as attempt:
            build(table)
        calls.append([(call.label, call.occurrence) for call in attempt.calls])
        assert all(value == 1 for value in linalg.host(attempt.flags()))
    assert calls[0] == calls[1]
    assert all(label[0].startswith("net.") for label, _ in calls[0])
