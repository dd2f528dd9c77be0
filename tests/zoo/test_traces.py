"""Every claimed layer of every exhibit: its block's trace against per-case gradients.

Each claimed layer has one of two relations, and none is left out (``check_all``):

* a block whose inputs are 1 (norm layers, scales, class tokens, positions, tied tables) has the
  Fisher's trace;
* a block with inputs has the trace of the expand setting, tr(Ā)·tr(G), whose rows an oracle takes
  with each case alone in its batch, where no layout can confuse it; the rows of recurrent layers
  come of a recurrence written by hand.

And the Fisher's own trace is no more than ``S`` times that of expand, S rows a case: what expand
leaves out is the correlation of a case's rows (Cauchy–Schwarz). A G or an A taken over the wrong
number of rows is off by S or by N.

Both are asked of the exact G to 1e-6, and of the default estimator's within the statistical error
of targets that the oracle draws itself.
"""

import functools

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
    rows = oracle.expanded(zoo.model, inputs, zoo.kind, watched(zoo.model), zoo.whole)
    check_all(engine, found, rows, diagonals)
    check_exact(engine, found, diagonals)
    if not zoo.whole:  # there the signs of a sum over cases are drawn: see below
        check_rows(found, rows)
        check_band(found, rows, diagonals)


def check_all(engine, found, rows, diagonals):
    """Every claimed layer is asked about; one that nothing was sent to has no curvature."""
    ours = constant(engine)
    for path, (trace, names) in found.items():
        if path not in ours and path not in rows:
            raise AssertionError(f"{path} is compared with nothing")
        if path in rows and not rows[path].rows:
            assert trace == of_fisher(diagonals, names) == 0, path


def constant(engine):
    """Path → whether each case has rows of its own, of blocks whose inputs are all 1."""
    rows = {row.layer: row.rows for row in engine.coverage()}
    return {
        use.layer.path: "all cases" not in rows[use.layer.path]
        for use in engine.network.uses
        if use.modules and (use.layer.d_in == 1 or isinstance(use.layer, Whole))
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
            assert trace == pytest.approx(rows[path].trace, rel=1e-6), path
            compared += 1
    assert compared


def check_band(found, rows, diagonals):
    """Between the Fisher's trace / S and a few times it."""
    for path, (trace, names) in found.items():
        if path in rows and trace > 1e-12:
            expected, S = of_fisher(diagonals, names), max(rows[path].rows, 1)
            assert expected / S / 1.5 < trace < 5 * expected, (path, trace, expected, S)


# --- by Monte Carlo on both sides -----------------------------------------------------------------

STEPS, SAMPLES = 60, 60


@pytest.mark.parametrize("name", ZOO)
def test_sampled_traces(name):
    """The default estimator, and for a graph the exact one too, whose signs are drawn."""
    for estimator in ("sampled", "exact")[: 1 + made(name).whole]:
        zoo, inputs, found, own = averaged(name, estimator)
        rows = oracle.expanded(
            zoo.model, inputs, zoo.kind, watched(zoo.model), zoo.whole, samples=SAMPLES
        )
        check_sampled(zoo, inputs, found, own, rows)


def averaged(name, estimator):
    """Traces of moments that are the mean over so many steps."""
    zoo = made(name)
    cases = len(zoo.inputs) if zoo.whole else zoo.cases
    engine = stepped(
        zoo,
        cases,
        STEPS,
        estimator=f"{estimator}(fraction=1.0, limit=0.9999)",
        structure="block_diagonal",
        schedule="periodic(T1=999, T2=999, T3=999, burn_in=0)",
        damping="constant(lam=1, gamma=1)",
    )
    zoo.flatten()
    return zoo, zoo.inputs[:cases], traces(engine), constant(engine)


def check_sampled(zoo, inputs, found, own, rows):
    """Five standard errors of both sides together, of each claimed layer."""
    for path, (trace, names) in found.items():
        if path in own:
            mean, error = oracle.sampled_traces(
                zoo.model, inputs, zoo.kind, names, SAMPLES, zoo.whole
            )
        else:
            mean, error = rows[path].trace, rows[path].error
        ours = error * (SAMPLES / STEPS) ** 0.5  # as many cases
        if zoo.whole or not own.get(path, True):
            # the square of a sum over cases in place of a sum of squares
            ours = mean * (2 / STEPS) ** 0.5
        assert abs(trace - mean) <= 5 * (error**2 + ours**2) ** 0.5 + 1e-9 * mean, (
            path,
            trace,
            mean,
        )
        assert error < 0.25 * mean or trace == mean == 0, (path, error, mean)


# --- controls -------------------------------------------------------------------------------------


@functools.cache
def averaged_llama():
    """A network's own traces, and the oracle's, that agree."""
    zoo, inputs, found, own = averaged("llama", "sampled")
    drawn = oracle.expanded(zoo.model, inputs, zoo.kind, watched(zoo.model), samples=SAMPLES)
    check_sampled(zoo, inputs, found, own, drawn)
    return (zoo, inputs, found, own), drawn


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
    (zoo, inputs, found, own), drawn = averaged_llama()
    broken = {**found, path: (found[path][0] * wrong, found[path][1])}
    with pytest.raises(AssertionError, match=path):
        check_sampled(zoo, inputs, broken, own, drawn)
    if factor == "T":
        with pytest.raises(AssertionError):
            check_band(broken, rows, diagonals)
