"""What a run says of itself: report, coverage, warnings about small batches."""

import re
import warnings

import pytest
from invariants.helpers import problem_of, run_of

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore:a batch of 16:UserWarning")


def test_report_says_where_the_run_stands(capsys):
    run = run_of()
    assert "step 0" in run.report()
    run.advance(3)
    run.evaluate("train", at="best")
    run.swap(damping="tied")
    print(run.report())
    text = capsys.readouterr().out
    for part in ("kfac, seed 0, cpu, step 3", "loss", "λ", "γ", "train error", "at best (step 3)"):
        assert part in text, (part, text)
    assert "after step 3: damping: levenberg_marquardt(lam=1.0) → tied" in text
    assert "estimator = sampled(fraction=0.5)" in text
    assert "step 3" in repr(run)


def test_coverage_prints_as_a_table(capsys):
    run = run_of()
    print(run.coverage())
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s+", lines[0]) == [
        "parameter",
        "layer",
        "kind",
        "block",
        "claimed_by",
        "chain",
        "tangents",
        "rows",
    ]
    assert len(lines) == 1 + 6 and lines[1].startswith("0.weight")
    assert repr(run.coverage()) == str(run.coverage())
    assert len({line.index("Kronecker") for line in lines[1:]}) == 1  # aligned


@pytest.mark.parametrize("method", ["nag", "adam", "muon"])
def test_baselines_report_too(method):
    run = kl.Run(problem_of(), method, device="cpu").advance(2)
    assert method in run.report() and "loss" in run.report()
    assert "0.weight" in str(run.coverage())


def small(recipe, **slots):
    """The texts of the warnings of three steps on batches of 100."""
    recipe = kl.Recipe.named(recipe).replace(batch="constant(size=100)", **slots)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kl.Run("digits", recipe, device="cpu").advance(3)
    return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("recipe", ["paper", "paper_tridiagonal", "no_momentum", "centering"])
def test_the_paper_on_a_small_batch_warns_once_and_names_the_remedy(recipe):
    told = small(recipe)
    assert len(told) == 1
    assert "a batch of 100" in told[0] and "'small_batch'" in told[0]


@pytest.mark.parametrize("recipe", ["robust", "small_batch"])
def test_recipes_made_for_it_do_not(recipe):
    assert small(recipe) == []


def test_a_large_batch_does_not_either():
    recipe = kl.Recipe.named("paper").replace(batch="constant(size=500)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kl.Run("digits", recipe, device="cpu").advance(2)
