"""The damping "example": whose it is, the laws of its slot, and a run with it."""

import kfac_lab as kl


def test_it_comes_from_this_distribution() -> None:
    """Through the entry point, as for everybody who installs it."""
    assert kl.lab.entry("damping", "example").owner == "kfac-lab-example"


def test_it_obeys_the_laws_of_its_slot() -> None:
    """The error says which law is broken, on which input, and what was expected."""
    kl.testing.check(kl.lab.component("damping", "example"), "damping")


def test_a_run_learns_with_it() -> None:
    """Twenty-five steps on the small problem in the package."""
    run = kl.Run("digits", recipe=kl.Recipe(damping="example"), seed=0, device="cpu")
    run.advance(25)
    assert run.history["loss"][-1] < run.history["loss"][0]
