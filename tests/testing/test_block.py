"""The laws of blocks: the built-in ones obey, and one that was written by hand."""

import dataclasses

import pytest
import torch
from testing.matrix import ask

from kfac_lab.hooks import Lab
from kfac_lab.testing import LawError, check

BUILT_IN = [
    "kronecker",
    *(f"kronecker(pi={pi!r})" for pi in ("frobenius", "spectral", "median", "one")),
    *(f"kronecker(inverse={how!r})" for how in ("eigh", "newton_schulz")),
    *(
        f"kronecker(factor_a={kind!r}, rank=2)"
        for kind in ("diagonal", "rank1_plus_diagonal", "lowrank_plus_diagonal")
    ),
    *(f"kronecker(factor_g={kind!r}, rank=2)" for kind in ("diagonal", "lowrank_plus_diagonal")),
    "kronecker(tikhonov='unfactored')",
    "relative",
    "relative(outputs=False)",
    "diagonal",
    "identity",
]
#: beside one that differs in the same field: these under ``make soak``
ALIKE = (
    *(f"kronecker(pi={pi!r})" for pi in ("frobenius", "spectral", "one")),
    "kronecker(inverse='eigh')",
    "kronecker(factor_a='diagonal', rank=2)",
    *(f"kronecker(factor_g={kind!r}, rank=2)" for kind in ("diagonal", "lowrank_plus_diagonal")),
    "relative(outputs=False)",
)
OBSERVED = {"observe_weighs", "observe_means", "cotangents_even"}


@pytest.mark.parametrize(
    "text", [pytest.param(t, marks=pytest.mark.soak) if t in ALIKE else t for t in BUILT_IN]
)
def test_built_in(text):
    found = check(Lab(entry_points=False).component("block", text))
    assert found.slot == "block"
    exempt = {r.law: r.why for r in found.results if r.status == "exempt"}
    without = {law for law, why in exempt.items() if why == "it has no observe"}
    assert without in (set(), OBSERVED)
    assert set(exempt) - without <= {"equals_its_factors", "forwards_traits", "asked_is_damped"}
    assert ("asked_is_damped" in exempt) == (not text.startswith(("kronecker", "relative")))


# --- written by hand ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RotatedInverse:
    """Q_G [(Q_Gᵀ V Q_A) ⊘ (S + γ²)] Q_Aᵀ."""

    q_a: torch.Tensor
    q_g: torch.Tensor
    weights: torch.Tensor

    def apply(self, matrix):
        return self.q_g @ ((self.q_g.t() @ matrix @ self.q_a) * self.weights) @ self.q_a.t()

    def dense(self):
        q = torch.kron(self.q_a.contiguous(), self.q_g.contiguous())
        return q @ torch.diag(self.weights.t().reshape(-1)) @ q.t()

    def factors(self):
        return None


@dataclasses.dataclass(frozen=True)
class Rotated:
    """George et al. 2018 in short: second moments in the eigenbasis that the last refresh found."""

    keep: float = dataclasses.field(default=1.0, metadata={"low": 0.0, "high": 1.0})

    def init(self):
        return {"keep": self.keep}

    def wants(self):
        return ["A", "G"]

    def observe(self, part_state, rows, cotangents, weight):
        if "q_a" not in part_state:
            return dict(part_state)
        gradients = torch.einsum("cnso,nsi->cnoi", cotangents, rows)
        turned = part_state["q_g"].t() @ gradients @ part_state["q_a"]
        new = (turned * turned).sum(0).mean(0)
        kept = (1 - weight) * part_state["keep"]
        return {**part_state, "s": kept * part_state["s"] + (1 - kept) * new}

    def factorise(self, moments, part_state):
        a, q_a = torch.linalg.eigh(moments["A"])
        g, q_g = torch.linalg.eigh(moments["G"])
        s = torch.outer(g.clamp(min=0), a.clamp(min=0))
        return (q_a, q_g), {**part_state, "q_a": q_a, "q_g": q_g, "s": s}

    def damped(self, factored, part_state, strength, previous):
        (q_a, q_g), s = factored, part_state["s"]
        return RotatedInverse(q_a, q_g, 1 / (s + strength.gamma**2).to(s.dtype))

    def product(self, moments, part_state, matrix):
        if "s" not in part_state:
            return moments["G"] @ matrix @ moments["A"]
        inside = part_state["q_g"].t() @ matrix @ part_state["q_a"]
        return part_state["q_g"] @ (inside * part_state["s"]) @ part_state["q_a"].t()


def test_one_written_by_hand():
    found = check(Rotated(keep=0.9))
    exempt = {r.law for r in found.results if r.status == "exempt"}
    assert exempt == {"equals_its_factors", "forwards_traits", "asked_is_damped"}


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (lambda self, m: m * self.weights, "equals_dense"),  # the basis is forgotten
        (lambda self, m: self.q_g @ m @ self.q_a.t() * self.weights, "symmetric"),
    ],
    ids=["no basis", "half a basis"],
)
def test_the_same_with_a_mistake(monkeypatch, change, law):
    monkeypatch.setattr(RotatedInverse, "apply", change)
    ask(monkeypatch, "block", law)
    with pytest.raises(LawError) as error:
        check(Rotated())
    assert law in error.value.report.broken


def test_damping_by_gamma_instead_of_its_square(monkeypatch):
    def damped(self, factored, part_state, strength, previous):
        (q_a, q_g), s = factored, part_state["s"]
        return RotatedInverse(q_a, q_g, 1 / (s + strength.gamma).to(s.dtype))

    monkeypatch.setattr(Rotated, "damped", damped)
    with pytest.raises(LawError, match="damping_limit") as error:
        check(Rotated())
    assert error.value.report.broken == ("damping_limit",)


def summed(self, part_state, rows, cotangents, weight):
    if "q_a" not in part_state:
        return part_state
    gradients = torch.einsum("cnso,nsi->oi", cotangents, rows)
    turned = part_state["q_g"].t() @ gradients @ part_state["q_a"]
    return {**part_state, "s": (1 - weight) * part_state["s"] + weight * turned * turned}


def test_a_mean_gradient_squared_is_no_second_moment(monkeypatch):
    monkeypatch.setattr(Rotated, "observe", summed)
    with pytest.raises(LawError) as error:
        check(Rotated())
    assert error.value.report.broken == ("observe_means", "cotangents_even")


def test_the_inverse_in_use_kept_where_gamma_is_the_same(monkeypatch):
    """The moments have moved on: γ alone does not say whether it is still right."""
    first = Rotated.damped

    def damped(self, factored, part_state, strength, previous):
        made = first(self, factored, part_state, strength, previous)
        known = isinstance(previous, RotatedInverse) and previous.q_g.shape == made.q_g.shape
        return previous if known and previous.q_a.shape == made.q_a.shape else made

    monkeypatch.setattr(Rotated, "damped", damped)
    ask(monkeypatch, "block", "previous_is_a_hint")
    with pytest.raises(LawError, match=r"the inverse of (earlier moments|another γ)") as error:
        check(Rotated())
    assert "previous_is_a_hint" in error.value.report.broken


def test_a_class_that_no_checkpoint_can_find():
    @dataclasses.dataclass(frozen=True)
    class Hidden(RotatedInverse):
        pass

    @dataclasses.dataclass(frozen=True)
    class Elsewhere(Rotated):
        def damped(self, factored, part_state, strength, previous):
            return Hidden(**vars(super().damped(factored, part_state, strength, previous)))

    with pytest.raises(LawError, match="install or import the plugin it came from") as error:
        check(Elsewhere())
    assert error.value.report.broken == ("resumes", "saved")
