"""The laws of structures: the built-in ones obey; what says ``keeps_blocks = False`` is let be."""

import dataclasses
from typing import ClassVar

import pytest
from testing.matrix import ask

from kfac_lab.hooks import Lab
from kfac_lab.paper.block_diagonal import BlockDiagonal
from kfac_lab.paper.block_tridiagonal import BlockTridiagonal
from kfac_lab.testing import LawError, check, report

BUILT_IN = {
    "block_diagonal": {"links_kept"},
    "block_diagonal(low_rank=True)": {"links_kept"},
    "block_tridiagonal": {"apart_without_links", "joined_is_whole"},
    "block_tridiagonal(sigma='smith')": {"apart_without_links", "joined_is_whole"},
}


@pytest.mark.parametrize("text", BUILT_IN)
def test_built_in(text):
    found = check(Lab(entry_points=False).component("structure", text))
    assert found.slot == "structure"
    assert {r.law for r in found.results if r.status == "exempt"} == {
        *BUILT_IN[text],
        "forwards_traits",
    }


@dataclasses.dataclass(frozen=True)
class HalfInverse:
    inner: object

    def apply(self, vector):
        return self.inner.apply(vector).scaled(0.5)


@dataclasses.dataclass(frozen=True)
class Half:
    """Another structure's P, halved. Wraps."""

    def pairs(self, chains):
        return BlockDiagonal().pairs(chains)

    def factorise(self, layers, blocks, moments, part_states):
        return BlockDiagonal().factorise(layers, blocks, moments, part_states)

    def damped(self, factored, part_states, strength, previous):
        return HalfInverse(BlockDiagonal().damped(factored, part_states, strength, None))


@dataclasses.dataclass(frozen=True)
class SaysSo(Half):
    keeps_blocks: ClassVar[bool] = False


def test_a_scale_of_its_own_has_to_be_declared(monkeypatch):
    with pytest.raises(LawError) as error:
        check(Half())
    assert error.value.report.broken == ("single_layers_alone",)
    kept = ("single_layers_alone", "diagonal_blocks_kept")
    ask(monkeypatch, "structure", *kept)
    assert set(kept) <= {r.law for r in check(SaysSo()).results if r.status == "exempt"}


def test_a_sign_in_the_tridiagonal_inverse(monkeypatch):
    """Ψ of the wrong sign is a symmetric positive definite P too: the links tell."""
    damped = BlockTridiagonal.damped

    def turned(self, factored, part_states, strength, previous):
        found = damped(self, factored, part_states, strength, previous)
        links = tuple(dataclasses.replace(link, psi_a=-link.psi_a) for link in found.links)
        return dataclasses.replace(found, links=links)

    monkeypatch.setattr(BlockTridiagonal, "damped", turned)
    assert report(BlockTridiagonal()).broken == ("links_kept",)
