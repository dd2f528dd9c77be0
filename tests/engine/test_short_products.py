"""Products of statistics, tangents and gradient in fewer bits, each apart: by numbers worked out by
hand in float64, of operands rounded beforehand.
"""

import pytest
import torch
from torch import nn

import kfac_lab as kl
from engine.helpers import moments_of
from kfac_lab.core.precision import FULL, Precision, rounded

PARTS = ("statistics", "tangents", "gradient")


def short(values):
    return values.float().bfloat16().double()


def net():
    """Linear, tanh, linear without biases; 40 cases."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 4, bias=False))
    return model, torch.randn(40, 6), torch.randn(40, 4)


def run_of(precision, graphs=False, **slots):
    model, x, y = net()
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=y)
    made = {
        "estimator": "exact(fraction=1.0)",
        "quadratic_model": "exact_fisher(fraction=1.0)",
        "damping": "constant(lam=1.0, gamma=1.0)",
        "batch": "constant(size=40)",
        **slots,
    }
    recipe = kl.Recipe.named("paper").replace(**made)
    return kl.Run(problem, recipe, seed=0, precision=precision, graphs=graphs, device="cpu")


def close(one, other, tolerance):
    """Equal within the tolerance of the larger one's size."""
    one, other = one.double(), other.double()
    assert (one - other).abs().max() <= tolerance * other.abs().max()


def evaluated(run):
    engine = run.stepper
    drawn = engine.passes.share(engine.problem.draw(1, 40, 0, False))
    seen, _ = engine.passes.evaluate(*drawn, 1, 40, None, [])
    return seen, drawn


def test_statistics_are_the_products_of_rounded_rows():
    run, full = run_of("statistics=bfloat16"), run_of(None)
    run.advance(1), full.advance(1)
    model, x, _ = net()
    hidden = torch.tanh(x @ model[0].weight.t()).detach()
    A, G = moments_of(run.stepper)
    plain, _ = moments_of(full.stepper)
    for own, rows, whole in ((A[0][0], x, plain[0][0]), (A[1][1], hidden, plain[1][1])):
        close(own, short(rows).t() @ short(rows) / 40, 1e-6)
        assert (own - whole).abs().max() > 1e-4 * whole.abs().max()
    assert G[0][0].dtype == plain[0][0].dtype


def test_tangents_are_products_of_rounded_operands():
    run = run_of("tangents=bfloat16")
    seen, drawn = evaluated(run)
    model, _, _ = net()
    first, second = (m.weight.detach() for m in (model[0], model[2]))
    v = kl.Vec([torch.randn(5, 6), torch.randn(4, 5)])
    ((outputs, (product,)),) = seen.tangents([v])
    x = drawn.inputs
    hidden = torch.tanh(x @ first.t())
    moved = (short(x) @ short(v[0]).t()) * (1 - hidden.double() ** 2)
    wanted = short(hidden) @ short(v[1]).t() + short(moved) @ short(second).t()
    close(product, wanted, 1e-6)
    close(outputs, hidden.double() @ second.double().t(), 1e-6)  # the forward pass is full
    exact = (x.double() @ v[0].double().t()) * (1 - hidden.double() ** 2)
    exact = hidden.double() @ v[1].double().t() + exact @ second.double().t()
    assert (product - exact).abs().max() > 1e-4 * exact.abs().max()


def test_the_gradient_is_made_of_products_of_rounded_operands():
    run = run_of("gradient=bfloat16")
    seen, drawn = evaluated(run)
    model, _, _ = net()
    first, second = (m.weight.detach() for m in (model[0], model[2]))
    x, y = drawn.inputs, drawn.targets
    hidden = torch.tanh(short(x) @ short(first).t())
    outputs = short(hidden) @ short(second).t()
    g = outputs - y.double()
    back = (short(g) @ short(second)) * (1 - hidden**2)
    wanted = (short(back).t() @ short(x) / 40, short(g).t() @ short(hidden) / 40)
    close(seen.loss, (g**2).sum() / 80, 1e-6)
    for own, each in zip(seen.gradient, wanted, strict=True):
        close(own, each, 2e-3)  # one rounding may fall to the other side
    evaluated_in_full, _ = evaluated(run_of(None))
    assert not torch.equal(seen.gradient[0], evaluated_in_full.gradient[0])


@pytest.mark.parametrize("part", PARTS)
def test_each_is_apart_and_programs_saves_and_forks_keep_it(part, tmp_path):
    text = f"{part}=bfloat16"
    one, other, full = run_of(text), run_of(text, graphs=True), run_of(None)
    for run in (one, other, full):
        run.advance(12)
    theta = [
        torch.cat([p.detach().reshape(-1) for p in run.problem.model.parameters()])
        for run in (one, other, full)
    ]
    assert torch.equal(theta[0], theta[1]) and other.stepper.programs.replayed
    assert 1e-8 < (theta[0] - theta[2]).abs().max() < 0.05
    assert one.fork().precision == Precision(**{part: "bfloat16"})
    one.save(tmp_path / "run.pt")
    model, x, y = net()
    problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=y)
    assert kl.Run.load(tmp_path / "run.pt", problem=problem).precision.text == text


def test_full_is_what_it_was():
    one, other = run_of(None), run_of("statistics=float32, gradient=float32")
    one.advance(6), other.advance(6)
    assert other.precision == FULL and other.precision.text == ""
    for a, b in zip(*(r.problem.model.parameters() for r in (one, other)), strict=True):
        assert torch.equal(a, b)


def test_a_loop_of_ones_own_has_it_too():
    model, x, y = net()
    opt = kl.KFAC(model, "gaussian", precision={"statistics": "bfloat16"})
    opt.step(x, y)
    close(moments_of(opt._engine)[0][0][0], short(x).t() @ short(x) / 40, 1e-6)


def test_rounding_keeps_seven_bits():
    assert rounded(torch.tensor([1.0 + 2.0**-9])) == 1.0
    assert rounded(torch.tensor([1.0 + 2.0**-7])) == 1.0 + 2.0**-7
    assert rounded(torch.tensor([1.0 + 2.0**-9], dtype=torch.float64)) != 1.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("statistics=int8", "statistics='int8' must be one of float32, tf32, bfloat16"),
        ("inverses=tf32", "must name gradient, statistics, tangents"),
        (3, "must name gradient, statistics, tangents"),
        ("tangents=tf32", "cpu has no tf32 products"),
    ],
)
def test_what_cannot_be_is_one_sentence(value, said):
    with pytest.raises(kl.RecipeError, match=said) as error:
        run_of(value)
    assert "\n" not in str(error.value)


def test_doubles_and_other_methods_are_refused():
    model, x, y = net()
    problem = kl.Problem(
        model=model.double(), likelihood="gaussian", inputs=x.double(), targets=y.double()
    )
    with pytest.raises(kl.RecipeError, match="the parameters are float64"):
        kl.Run(problem, "paper", precision="gradient=bfloat16", device="cpu")
    with pytest.raises(kl.RecipeError, match="a switch of the method kfac"):
        kl.Run("digits", "adam", precision="gradient=bfloat16", device="cpu")


@pytest.mark.parametrize("kind", ["tf32", "bfloat16"])
@pytest.mark.parametrize("part", PARTS)
def test_on_cuda(part, kind, cuda):
    if torch.cuda.get_device_capability(cuda) < (8, 0):
        pytest.skip("this device has neither TF32 nor bfloat16 products")
    made = kl.Recipe.named("paper").replace(batch="constant(size=200)")
    runs = [
        kl.Run("digits", made, seed=0, device=cuda, precision=p) for p in (f"{part}={kind}", None)
    ]
    for run in runs:
        run.advance(8)
    one, other = (
        torch.cat([p.detach().reshape(-1) for p in run.problem.model.parameters()]) for run in runs
    )
    assert 0 < (one - other).norm() < 0.02 * other.norm()


def preconditioned(precision, graphs=False, steps=1):
    """A Preconditioner after some steps of one batch, and the last gradient that it gave."""
    model, x, y = net()
    recipe = kl.Recipe.named("small_batch").replace(
        estimator="exact(fraction=1.0)", damping="constant(lam=1.0, gamma=1.0)"
    )
    pre = kl.Preconditioner(model, "gaussian", recipe, precision=precision, graphs=graphs)
    for _ in range(steps):
        model.zero_grad()
        (0.5 * (model(x) - y).square().sum() / len(x)).backward()
        pre.step()
    return pre, [p.grad.clone() for p in model.parameters()]


def test_a_preconditioner_s_statistics_are_short_too():
    pre, _ = preconditioned("statistics=bfloat16")
    plain, _ = preconditioned(None)
    model, x, _ = net()
    hidden = torch.tanh(x @ model[0].weight.t()).detach()
    for own, rows, whole in (
        (moments_of(pre._engine)[0][0][0], x, moments_of(plain._engine)[0][0][0]),
        (moments_of(pre._engine)[0][1][1], hidden, moments_of(plain._engine)[0][1][1]),
    ):
        close(own, short(rows).t() @ short(rows) / 40, 1e-6)
        assert (own - whole).abs().max() > 1e-4 * whole.abs().max()


def test_a_preconditioner_s_precision_goes_through_programs_and_saves():
    (one, mine), (other, theirs) = (
        preconditioned({"statistics": "bfloat16"}, graphs, 12) for graphs in (False, True)
    )
    assert other._engine.programs.replayed and all(map(torch.equal, mine, theirs))
    anew, _ = preconditioned("statistics=bfloat16")
    anew.load_state_dict(one.state_dict())
    assert anew._engine.precision == Precision(statistics="bfloat16")
    with pytest.raises(kl.RecipeError, match="statistics='half'"):
        preconditioned("statistics=half")
