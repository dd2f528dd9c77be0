"""Every claimed layer of every exhibit: its block's trace against per-case gradients.

Each claimed layer has one of two relations, and none is left out (``check_all``):

* a block whose inputs are 1 (norm layers, scales, class tokens, positions, tied tables) has the
  Fisher's trace;
* a block with inputs has both traces of the expand setting, tr(Ā) and tr(G) each, whose rows an
  oracle takes with each case alone in its batch, where no layout can confuse it; the rows of
  recurrent layers come of a recurrence written by hand.

A table of tokens has the Fisher's own trace too where no case has a token twice: there a row's
|a|² is 1 and no two of a case meet. Elsewhere E|a|²|g|² is not E|a|²·E|g|², which is the
approximation and not a fault.

And the Fisher's own trace is no more than ``S`` times that of expand, S rows a case: what expand
leaves out is the correlation of a case's rows (Cauchy–Schwarz). A G or an A taken over the wrong
number of rows is off by S or by N.

Both are asked of the exact G to 1e-6, and of the default estimator's within the statistical error
of targets that the oracle draws itself.
"""

import functools
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_map

from kfac_lab.core.record import Recorder
from kfac_lab.core.whole import Whole

from . import engine_side, oracle
from .engine_side import stepped, traces
from .models import ZOO, made
from .watched import watched

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@functools.cache
def seen(name):
    """The exhibit, the cases looked at, its engine after a step, and each block's trace."""
    zoo = made(name)
    cases = len(zoo.inputs) if zoo.whole else zoo.cases
    engine = stepped(zoo, cases)
    zoo.flatten()
    return zoo, zoo.inputs[:cases], engine, traces(engine)


def of_fisher(diagonals, names):
    return float(sum(diagonals[name].sum() for name in names))


@functools.cache
def expected(name):
    """By the oracle: the diagonal of each parameter's Fisher block, and each layer's rows."""
    zoo, inputs, *_ = seen(name)
    diagonals = oracle.fisher_diagonals(zoo.model, inputs, zoo.kind, zoo.whole)
    return diagonals, oracle.expanded(zoo.model, inputs, zoo.kind, watched(zoo.model), zoo.whole)


@pytest.mark.parametrize("name", ZOO)
def test_traces(name):
    zoo, _, engine, found = seen(name)
    diagonals, rows = expected(name)
    check_all(engine, found, rows, diagonals)
    check_exact(engine, found, diagonals)
    if not zoo.whole:  # there the signs of a sum over cases are drawn: see below
        check_rows(found, rows)
        check_band(found, rows, diagonals)


def check_all(engine, found, rows, diagonals):
    """Every claimed layer is asked about; one that nothing was sent to has no curvature."""
    ours = constant(engine)
    for path, sides in found.items():
        if path not in ours and path not in rows:
            raise AssertionError(f"{path} is compared with nothing")
        if path in rows and not rows[path].rows:
            assert sides.trace == of_fisher(diagonals, sides.names) == 0, path


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
    for path, sides in found.items():
        if own.get(path):
            expected = of_fisher(diagonals, sides.names)
            assert sides.trace == pytest.approx(expected, rel=1e-6), path


def check_rows(found, rows):
    """Blocks with inputs: exactly expand's Ā and G, each by itself."""
    compared = 0
    for path, sides in found.items():
        if path in rows:
            assert sides.A == pytest.approx(rows[path].A, rel=1e-6), (path, "A")
            assert sides.G == pytest.approx(rows[path].G, rel=1e-6, abs=1e-300), (path, "G")
            compared += 1
    assert compared


def check_band(found, rows, diagonals):
    """Between the Fisher's trace / S and a few times it."""
    for path, sides in found.items():
        if path in rows and sides.trace > 1e-12:
            expected, S = of_fisher(diagonals, sides.names), max(rows[path].rows, 1)
            assert expected / S / 1.5 < sides.trace < 5 * expected, (path, sides, expected, S)


# --- coverage, and the certificate ----------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_no_parameter_needs_a_fallback(name):
    zoo, _, engine, _ = seen(name)
    rows = {row.parameter: row for row in engine.coverage()}
    assert set(rows) == {n for n, _ in zoo.model.named_parameters()}
    assert not [n for n, row in rows.items() if row.claimed_by == "fallback"]


def by_rows(engine, model, inputs, weights):
    """Σ_rows g āᵀ of a pass for ⟨weights, outputs⟩, as tensors by name."""
    recorder = Recorder(engine.network)
    with recorder.recording():
        outputs = model(inputs)
    a = recorder.rows_in()
    outputs.backward(weights)
    g, found = recorder.rows_out(), {}
    for use, left, right in zip(engine.network.uses, a, g, strict=True):
        if use.modules and left is not None:
            left = left.to_dense() if left.is_sparse else left
            total = torch.einsum("nso,nsi->oi", right, left)
            found |= dict(zip(use.parameters, use.layer.unpack(total), strict=True))
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ZOO)
def test_the_rows_make_the_gradient(name):
    """Σ g āᵀ over the recorded rows is autograd's gradient, to 1e-5 of it (here in float64)."""
    zoo, inputs, engine, _ = seen(name)
    outputs = zoo.model(inputs)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).double()
    named = dict(zoo.model.named_parameters())
    truth = torch.autograd.grad(outputs, list(named.values()), weights, allow_unused=True)
    truth = dict(zip(named, truth, strict=True))
    found = by_rows(engine, zoo.model, inputs, weights)
    assert found
    for parameter, ours in found.items():
        difference = float((ours - truth[parameter]).norm())
        assert difference <= 1e-5 * float(truth[parameter].norm()) + 1e-12, parameter


# --- by Monte Carlo on both sides -----------------------------------------------------------------

#: samples of each case, by so many steps; by fewer where each of them takes COPIES of every case
STEPS, SAMPLES, COPIES = 100, 100, 10
#: their exact traces are compared above; rows and losses are of the kinds that others here have
LIKE_OTHERS = {
    "gpt2_untied": "gpt2",
    "bert": "vit",
    "convnext": "resnet",
    "swin": "vit",
    "lstm_tagger_time_first": "lstm_tagger",
    "gcn_sparse": "gcn",
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.soak if n in LIKE_OTHERS else []) for n in ZOO],
)
def test_sampled_traces(name):
    """The default estimator, and for a graph the exact one too, whose signs are drawn."""
    for estimator in ("sampled", "exact")[: 1 + made(name).whole]:
        zoo, inputs, found, own = averaged(name, estimator)
        rows = oracle.expanded(
            zoo.model, inputs, zoo.kind, watched(zoo.model), zoo.whole, samples=SAMPLES
        )
        check_sampled(zoo, inputs, found, own, rows)


def averaged(name, estimator):
    """Traces of moments that are the mean over so many samples of every case.

    Where a block has rows for all cases a step's signs are one draw, whatever its batch is.
    """
    zoo = made(name)
    cases = len(zoo.inputs) if zoo.whole else zoo.cases
    inputs, copies = zoo.inputs[:cases], 1
    if not zoo.whole and all(constant(stepped(zoo, cases, 0)).values()):
        copies = COPIES
        zoo.inputs = torch.cat([inputs] * copies)
        zoo.targets = tree_map(lambda t: torch.cat([t[:cases]] * copies), zoo.targets)
    passes = STEPS // copies
    engine, store = engine_side.averaged(zoo, cases * copies, passes, f"{estimator}(fraction=1.0)")
    zoo.flatten()
    return zoo, inputs, traces(engine, store), constant(engine)


def check_sampled(zoo, inputs, found, own, rows):
    """Five standard errors of both estimates together, of each claimed layer: Ā, then G or all."""
    blocks = {path: sides.names for path, sides in found.items() if path in own}
    traced = oracle.sampled_traces(zoo.model, inputs, zoo.kind, blocks, SAMPLES, zoo.whole)
    for path, sides in found.items():
        if path in own:
            trace = sides.trace
            mean, error = traced[path]
        else:
            assert sides.A == pytest.approx(rows[path].A, rel=1e-6), (path, "A")
            trace, mean, error = sides.G, rows[path].G, rows[path].error
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


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "gpt2_untied",
        "bert",
        "llama",
        pytest.param("whisper", marks=pytest.mark.soak),
        "lstm_tagger",
    ],
)
def test_a_table_of_tokens_has_the_trace_of_its_fisher(name):
    """Where no case has a token twice; with tokens that come again it has another."""
    zoo = made(name)
    g = torch.Generator().manual_seed(5)
    cases, length = zoo.inputs[: zoo.cases].shape
    for n in range(cases):  # without 0, which is padding
        zoo.inputs[n] = 1 + torch.randperm(11, generator=g)[:length]
    assert compared(zoo) == pytest.approx(1, rel=1e-6)
    zoo.inputs[: zoo.cases, 1] = zoo.inputs[: zoo.cases, 0]
    assert compared(zoo) != pytest.approx(1, rel=1e-3)


def compared(zoo):
    """The trace of the block of the table of 12 tokens, over that of its Fisher block."""
    (path,) = (
        path
        for path, module in zoo.model.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == 12
    )
    found = traces(stepped(zoo, zoo.cases))[path]
    own = oracle.fisher_diagonals(zoo.model, zoo.inputs[: zoo.cases], zoo.kind)
    return found.trace / of_fisher(own, found.names)


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
    """G averaged over cases where it is to be over rows, and over one case: by each check.

    Also where Ā is off by the inverse, so that the product is right.
    """
    _, inputs, _, found = seen("llama")
    diagonals, rows = expected("llama")
    check_rows(found, rows)
    check_band(found, rows, diagonals)
    path = "model.lm_head"
    wrong = {"T": inputs.shape[1], "N": 1 / len(inputs)}[factor]

    def broken(of, A=1.0):
        return {**of, path: replace(of[path], A=A * of[path].A, G=wrong * of[path].G)}

    for A in (1.0, 1 / wrong):
        with pytest.raises(AssertionError, match=path):
            check_rows(broken(found, A), rows)
    if factor == "T":
        with pytest.raises(AssertionError):
            check_band(broken(found), rows, diagonals)
    (zoo, inputs, found, own), drawn = averaged_llama()
    for A in (1.0, 1 / wrong):
        with pytest.raises(AssertionError, match=path):
            check_sampled(zoo, inputs, broken(found, A), own, drawn)
