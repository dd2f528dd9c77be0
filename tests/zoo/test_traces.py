"""Every claimed layer of every exhibit: its block's trace against per-case gradients.

Three relations, strictest first:

* a block whose inputs are 1 (norm layers, scales, class tokens, positions) has the Fisher's trace;
* a block with positions has the trace of the expand setting, whose rows an oracle takes with
  each case alone in its batch, where no layout can confuse it;
* and the Fisher's own trace is no more than ``S`` times that of expand, S rows a case: what expand
  leaves out is the correlation of a case's rows (Cauchy–Schwarz). A G or an A taken over the wrong
  number of rows is off by S or by N.
"""

import pytest

from kfac_lab.core.whole import Whole

from . import oracle
from .engine_side import stepped, traces
from .models import ZOO, made
from .watched import watched

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def seen(name):
    """The exhibit, the cases looked at, its engine after a step, and each block's trace."""
    zoo = made(name)
    cases = len(zoo.inputs) if zoo.whole else zoo.cases
    engine = stepped(zoo, cases)
    zoo.flatten()
    return zoo, zoo.inputs[:cases], engine, traces(engine)


def of_fisher(diagonals, names):
    return float(sum(diagonals[name].sum() for name in names))


@pytest.mark.parametrize("name", ZOO)
def test_traces(name):
    zoo, inputs, engine, found = seen(name)
    diagonals = oracle.fisher_diagonals(zoo.model, inputs, zoo.kind, zoo.whole)
    check_exact(engine, found, diagonals)
    if not zoo.whole:
        rows = oracle.expanded(zoo.model, inputs, zoo.kind, watched(zoo.model))
        check_rows(found, rows)
        check_band(found, rows, diagonals)


def constant(engine):
    """Path → whether each case has rows of its own, of blocks whose inputs are all 1."""
    rows = {row.layer: row.rows for row in engine.coverage()}
    return {
        use.layer.path: "all cases" not in rows[use.layer.path]
        for use in engine.network.uses
        if use.modules
        and (use.layer.d_in == 1 or isinstance(use.layer, Whole))
        and len(use.modules) == 1  # a table tied to another layer couples its two uses
    }


def check_exact(engine, found, diagonals):
    """Exactly the Fisher's trace; where rows serve all cases their signs are drawn, so not here."""
    own = constant(engine)
    for path, (trace, names) in found.items():
        if own.get(path):
            assert trace == pytest.approx(of_fisher(diagonals, names), rel=1e-6), path


def check_rows(found, rows):
    """Blocks with positions: exactly expand's trace."""
    compared = 0
    for path, (trace, _) in found.items():
        if path in rows:
            assert trace == pytest.approx(rows[path][0], rel=1e-6), path
            compared += 1
    assert compared


def check_band(found, rows, diagonals):
    """Between the Fisher's trace / S and a few times it."""
    for path, (trace, names) in found.items():
        if path in rows and trace > 1e-12:
            expected, S = of_fisher(diagonals, names), max(rows[path][1], 1)
            assert expected / S / 1.5 < trace < 5 * expected, (path, trace, expected, S)


# --- the sampled estimator, by Monte Carlo on both sides ------------------------------------------


@pytest.mark.parametrize("name", ["llama", "vit", "swin", "gcn"])
def test_sampled_traces(name):
    """The default estimator's G: within the statistical error of per-case gradients' traces.

    Asked of the blocks whose trace is the Fisher's: norm layers, and a head behind one.
    """
    zoo = made(name)
    cases = len(zoo.inputs) if zoo.whole else zoo.cases
    inputs, steps, samples = zoo.inputs[:cases], 150, 300
    engine = stepped(
        zoo,
        cases,
        steps,
        estimator="sampled(fraction=1.0, limit=0.9999)",
        structure="block_diagonal",
        schedule="periodic(T1=999, T2=999, T3=999, burn_in=0)",
        damping="constant(lam=1, gamma=1)",
    )
    found, own = traces(engine), constant(engine)
    rows = {}
    if not zoo.whole:
        rows = oracle.expanded(zoo.model, inputs, zoo.kind, watched(zoo.model))
    diagonals = oracle.fisher_diagonals(zoo.model, inputs, zoo.kind, zoo.whole)
    asked = set(own) | {
        path
        for path, (_, names) in found.items()
        if path in rows and rows[path][0] == pytest.approx(of_fisher(diagonals, names), rel=5e-3)
    }
    assert asked
    for path in asked:
        trace, names = found[path]
        mean, error = oracle.sampled_traces(zoo.model, inputs, zoo.kind, names, samples, zoo.whole)
        ours = error * (samples / steps) ** 0.5  # as many cases, fewer samples
        if not own.get(path, True):  # one square of a sum over cases in place of a sum of squares
            ours = mean * (2 / steps) ** 0.5
        assert abs(trace - mean) < 5 * (error**2 + ours**2) ** 0.5 + 5e-3 * mean, path
        assert error < 0.2 * mean


# --- controls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", ["T", "N"])
def test_a_block_over_the_wrong_rows_is_seen(factor):
    """G averaged over cases where it is to be over rows, and A taken for one case: both checks."""
    zoo, inputs, _, found = seen("llama")
    rows = oracle.expanded(zoo.model, inputs, zoo.kind, watched(zoo.model))
    diagonals = oracle.fisher_diagonals(zoo.model, inputs, zoo.kind)
    check_rows(found, rows)
    check_band(found, rows, diagonals)
    path = "model.lm_head"
    wrong = {"T": inputs.shape[1], "N": 1 / len(inputs)}[factor]
    broken = {**found, path: (found[path][0] * wrong, found[path][1])}
    with pytest.raises(AssertionError):
        check_rows(broken, rows)
    if factor == "T":
        with pytest.raises(AssertionError):
            check_band(broken, rows, diagonals)
