"""Chains of layers: neighbours, links in any order, blocks that end one."""

from dataclasses import dataclass

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
    precision,
)

from kfac_lab.paper.block_tridiagonal import BlockTridiagonal
from kfac_lab.paper.diagonal import Diagonal, Identity
from kfac_lab.paper.kronecker import Kronecker


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
