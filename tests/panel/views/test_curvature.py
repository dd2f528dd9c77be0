"""Views of curvature: spectra, heat maps and the inverse, against dense float64 oracles."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from oracles import approximations
from torch import nn

import kfac_lab as kl
from kfac_lab.panel.views import inverse, seen, spectra
from kfac_lab.panel.views.heat_maps import PIXELS, relative
from kfac_lab.panel.views.seen import Factor, Seen, Shape


def tiny(structure="block_diagonal", dtype=torch.float64, **changes):
    """A run on 5-4-3-5, small enough for every dense matrix."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 5)
    ).to(dtype)
    inputs = torch.rand(200, 5, dtype=dtype)
    problem = kl.Problem(model=model, likelihood="bernoulli", inputs=inputs, targets=inputs)
    recipe = kl.Recipe.named("paper").replace(
        structure=structure, estimator="exact(fraction=1.0)", batch="constant(size=200)", **changes
    )
    return kl.Run(problem, recipe=recipe, seed=0).advance(4)


# --- spectra --------------------------------------------------------------------------------------


def test_spectra_are_the_eigenvalues_of_the_dense_factors(runs, glance, drawn) -> None:
    left, right = drawn("spectra", {"a": runs.swapped.history}, glance)
    store = runs.swapped.stepper.store
    for axes, name in ((left, "A"), (right, "G")):
        assert len(axes.get_lines()) == 6
        for i, (shape, line) in enumerate(zip(glance.layers, axes.get_lines(), strict=True)):
            assert line.get_label().startswith(f"{shape.path}: κ ")
            oracle = np.linalg.eigvalsh(store.current[name, i, i].double().numpy())[::-1]
            oracle = oracle[oracle > 1e-10 * oracle[0]]
            x, y = line.get_xydata().T
            assert np.array_equal(x, np.arange(1, len(x) + 1))
            count = int((oracle > 1e-6 * oracle[0]).sum())  # below, rounding differs
            assert count > 2 and len(y) >= count
            np.testing.assert_allclose(y[:count], oracle[:count], rtol=1e-6)


def test_condition_numbers_with_and_without_damping() -> None:
    run = tiny()
    glance = seen(run, ["factors"])
    found = {(s.path, s.letter): s for s in spectra.spectra(glance)}
    assert len(found) == 6
    for i, shape in enumerate(glance.layers):
        for name, letter in (("A", "Ā"), ("G", "G")):
            matrix = run.stepper.store.current[name, i, i].numpy()
            mine = found[shape.path, letter]
            assert mine.rank == np.linalg.matrix_rank(matrix, hermitian=True) == len(matrix)
            assert mine.condition == pytest.approx(np.linalg.cond(matrix), rel=1e-6)
            inverse_in_use = run.stepper.state_.inverse.inverses[i]
            shift = float(getattr(inverse_in_use, f"{name}_shift"))
            shifted = matrix + shift * np.eye(len(matrix))
            assert mine.damped == pytest.approx(np.linalg.cond(shifted), rel=1e-6)
            assert mine.damped < mine.condition


def test_a_singular_factor_is_called_singular(views) -> None:
    rows = torch.randn(3, 5)
    factors = (Factor("one", "Ā", rows.t() @ rows, 0.5), Factor("one", "G", torch.ones(4), None))
    glance = Seen(1, "t", "kfac", "e", layers=(Shape("one", 4, 5),), factors=factors)
    first, second = spectra.spectra(glance)
    assert first.rank == 3 and math.isinf(first.condition) and first.damped > 1
    assert (
        second.values.tolist() == [1.0] * 4 and second.condition == 1 and math.isnan(second.damped)
    )
    text = views["spectra"].summary({}, glance)
    assert "layer one, Ā: 5 eigenvalues" in text and "singular (rank 3), damped" in text
    assert "layer one, G: 4 eigenvalues from 1 to 1, condition number 1." in text


def test_the_summary_has_every_factors_numbers(runs, glance, views) -> None:
    text = views["spectra"].summary({"a": runs.swapped.history}, glance)
    assert "at step 60" in text
    for s in spectra.spectra(glance):
        top = float(torch.linalg.eigvalsh(
            next(f.matrix for f in glance.factors if f[:2] == s[:2]).double()
        )[-1])  # fmt: skip
        assert f"layer {s.path}, {s.letter}: {len(s.values)} eigenvalues from {top:.4g}" in text
        assert f"damped {s.damped:.4g}" in text


# --- heat maps ------------------------------------------------------------------------------------


def test_heat_maps_show_each_factor_relative_to_its_diagonal(runs, glance, drawn, views) -> None:
    axes = drawn("factors", {"a": runs.swapped.history}, glance)[0]
    shown = [np.asarray(image.get_array()) for image in axes.get_images()]
    order = [(letter, shape.path) for letter in ("Ā", "G") for shape in glance.layers]
    images = {f"{path} {letter}": one for (letter, path), one in zip(order, shown, strict=True)}
    assert len(images) == len(glance.factors) == 12
    text = views["factors"].summary({"a": runs.swapped.history}, glance)
    for factor in glance.factors:
        matrix = factor.matrix.double().numpy()
        expected = np.zeros_like(matrix)
        for i in range(len(matrix)):
            for j in range(len(matrix)):
                if matrix[i, i] > 0 and matrix[j, j] > 0:
                    expected[i, j] = matrix[i, j] / math.sqrt(matrix[i, i] * matrix[j, j])
        np.testing.assert_allclose(images[f"{factor.path} {factor.letter}"], expected, atol=1e-12)
        off = np.abs(expected[~np.eye(len(matrix), dtype=bool)]).mean()
        assert f"layer {factor.path}, {factor.letter}: {len(matrix)} rows" in text
        assert f"relative to it, {off:.4g}" in text


@pytest.mark.parametrize("columns", [4, 6, 8])
def test_the_same_factor_looks_the_same_in_every_column(columns, drawn) -> None:
    rows = torch.randn(100, 128, generator=torch.Generator().manual_seed(0))
    paths = [f"{n}" for n in range(columns)]
    factors = tuple(Factor(path, "Ā", rows.t() @ rows, None) for path in paths)
    shapes = tuple(Shape(path, 4, 128) for path in paths)
    axes = drawn("factors", {}, Seen(1, "t", "kfac", "e", layers=shapes, factors=factors))[0]
    canvas = FigureCanvasAgg(axes.figure)
    canvas.draw()
    page = np.asarray(canvas.buffer_rgba())
    crops = []
    for image in axes.get_images():
        box = image.get_window_extent()
        edges = np.array([box.x0, box.x1, len(page) - box.y1, len(page) - box.y0])
        assert np.abs(edges - edges.round()).max() < 1e-3  # whole pixels
        left, right, top, bottom = edges.round().astype(int)
        crops.append(page[top + 1 : bottom - 1, left + 1 : right - 1])
    assert len(crops) == columns and crops[0].std() > 5
    for other in crops[1:]:
        assert np.array_equal(other, crops[0])


def test_a_wide_factor_is_shown_by_evenly_spaced_rows() -> None:
    rows = torch.randn(600, 500, dtype=torch.float64)
    matrix = rows.t() @ rows
    found = relative(matrix)
    assert found.shape == (PIXELS, PIXELS)
    np.testing.assert_allclose(np.diagonal(found), 1.0)
    whole = matrix.numpy() / np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
    assert found[0, -1] == pytest.approx(whole[0, 499])
    assert np.isin(found[5].round(9), whole.round(9)).all()


# --- the inverse ----------------------------------------------------------------------------------


def oracle_averages(inverse_matrix, sides):
    """Mean |entries| of each block of a dense inverse, by numpy."""
    ends = np.cumsum([0, *(a * b for a, b in sides)])
    blocks = [slice(a, b) for a, b in itertools.pairwise(ends)]
    return np.array([[np.abs(inverse_matrix[i, j]).mean() for j in blocks] for i in blocks])


@pytest.mark.parametrize(
    "block",
    ["kronecker", "kronecker(tikhonov='unfactored')", "kronecker(factor_a='rank1_plus_diagonal')",
     "diagonal", "identity"],
)  # fmt: skip
def test_block_averages_are_those_of_the_dense_inverse(block) -> None:
    run = tiny(block=block)
    glance = seen(run, ["inverse"])
    sides = [(s.d_out, s.d_in) for s in glance.layers]
    parts = run.stepper.state_.inverse.inverses
    if block == "identity":  # which need not know its own shape
        whole = np.eye(sum(a * b for a, b in sides))
    else:
        whole = torch.block_diag(*[part.dense() for part in parts]).numpy()
    found = inverse.averages(glance)
    assert found.exact
    np.testing.assert_allclose(found.values, oracle_averages(whole, sides), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sigma", ["eigh", "smith"])
def test_block_averages_of_a_chain_are_those_of_the_papers_inverse(sigma) -> None:
    """F̂⁻¹ assembled by the oracle from damped factors and undamped cross moments (section 4.3)."""
    run = tiny(f"block_tridiagonal(sigma='{sigma}')")
    glance = seen(run, ["inverse"])
    sides = [(s.d_out, s.d_in) for s in glance.layers]
    state = run.stepper.state_
    damped = [part.factors() for part in state.inverse.inverses]
    A = [[None] * 3 for _ in range(3)]
    G = [[None] * 3 for _ in range(3)]
    for i, (a, g) in enumerate(damped):
        A[i][i], G[i][i] = a, g
    for (i, j), (a, g) in zip(state.factored.links, state.factored.cross, strict=True):
        A[i][j], A[j][i], G[i][j], G[j][i] = a, a.t(), g, g.t()
    A[0][2], A[2][0] = torch.zeros(sides[0][1], sides[2][1]).double(), None
    G[0][2], G[2][0] = torch.zeros(sides[0][0], sides[2][0]).double(), None
    A[2][0], G[2][0] = A[0][2].t(), G[0][2].t()
    whole = approximations.chain_precision(approximations.kron_blocks(A, G)).numpy()
    found = inverse.averages(glance)
    assert found.exact
    expected = oracle_averages(whole, sides)
    np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-12)
    assert expected[0, 1] > 0 and found.values[0, 2] == found.values[2, 0] == 0


def test_a_wide_inverse_is_estimated_and_says_so(runs, glance, views) -> None:
    found = inverse.averages(glance)
    assert found.of == tuple(s.d_out * s.d_in for s in glance.layers)
    assert not found.exact and min(found.columns) == found.of[2] == 68 and max(found.columns) == 192
    state = runs.swapped.stepper.state_.inverse
    (j,) = [j for j, s in enumerate(glance.layers) if s.d_out * s.d_in == 528]
    columns = []
    for number in range(528):  # the truth for one layer, column by column
        parts = [torch.zeros(s.d_out, s.d_in) for s in glance.layers]
        parts[j].view(-1)[number] = 1
        columns.append([float(m.abs().double().mean()) for m in state.apply(kl.Vec(parts))])
    np.testing.assert_allclose(found.values[:, j], np.mean(columns, 0), rtol=0.3)
    again = inverse.block_averages(state, glance.layers)
    assert np.array_equal(found.values, again.values), "always the same columns"
    text = views["inverse"].summary({"a": runs.swapped.history}, glance)
    assert "estimated from 192 or more columns of a layer" in text
    assert f"layer 0: {found.values[0, 0]:.4g};" in text
    assert f"0 with 2: {found.values[0, 1]:.4g};" in text


def test_layers_that_do_not_see_each_other_are_called_so(runs, views, drawn) -> None:
    glance = seen(runs.plain, ["inverse"])
    text = views["inverse"].summary({}, glance)
    assert "all entries" in text and "layers do not see each other, all 0" in text
    left, right = drawn("inverse", {}, glance)[:2]
    shown = np.ma.filled(left.get_images()[0].get_array(), 0)
    np.testing.assert_array_equal(shown, inverse.averages(glance).values)
    assert np.count_nonzero(shown) == 6
    ratio = np.ma.filled(right.get_images()[0].get_array(), 0)
    np.testing.assert_allclose(ratio, np.eye(6), rtol=1e-12)


def test_a_coupling_that_says_nothing_of_itself_is_found() -> None:
    """An outsider's structure with ``inverses`` that mixes layers all the same."""

    class Block:
        def apply(self, matrix):
            return 2 * matrix

        def factors(self):
            return 0.5 * torch.eye(2), torch.eye(2)

    class Mixing:
        inverses = (Block(), Block())

        def apply(self, vector):
            first, second = vector
            return kl.Vec([2 * first + second, 2 * second + first])

    found = inverse.block_averages(Mixing(), [Shape("a", 2, 2), Shape("b", 2, 2)])
    np.testing.assert_allclose(found.values, [[0.5, 0.25], [0.25, 0.5]])


def test_an_inverse_that_cannot_be_vectorised_goes_column_by_column() -> None:
    class Awkward:
        def apply(self, vector):
            (matrix,) = vector
            return kl.Vec([matrix * (3.0 if float(matrix.sum()) else 1.0)])

    found = inverse.block_averages(Awkward(), [Shape("a", 2, 3)])
    np.testing.assert_allclose(found.values, [[3.0 / 6]])
