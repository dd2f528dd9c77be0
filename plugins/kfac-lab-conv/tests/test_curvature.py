"""The factors and whole steps, against dense float64 matrices made by loops (conv_oracle)."""

import copy

import conv_oracle
import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
REDUCE = {"Conv2d": "kronecker_reduce", "*": "kronecker"}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(*modules):
    """The modules as a float64 network, biases random too."""
    model = nn.Sequential(*modules).double()
    for n, p in enumerate(model.parameters()):
        p.data = draw(*p.shape, seed=100 + n) / 2
    return model


class Outside(nn.Module):
    """The same network where no plan is made of it: the generic path."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def run_of(model, x, y, likelihood="gaussian", block="kronecker", lam=0.1, gamma=0.2, l2=0.0):
    recipe = kl.Recipe(
        estimator="exact(fraction=1.0)",
        block=block,
        quadratic_model="exact_fisher(fraction=1.0)",
        damping=f"constant(lam={lam}, gamma={gamma})",
        momentum="optimal",
        schedule="every_step",
        batch=f"constant(size={len(x)})",
        average="none",
    )
    problem = kl.Problem(model=model, likelihood=likelihood, inputs=x, targets=y, l2=l2)
    return kl.Run(problem, recipe, seed=0, device=here())


def undamped(model, x, block="kronecker"):
    """Layer name -> Ā ⊗ G that the engine holds after one step from the model's parameters."""
    model = copy.deepcopy(model)
    run = run_of(model, x, torch.zeros_like(model(x).detach()), block=block)
    run.advance(1)
    engine = run.stepper
    found = {}
    for i, layer in enumerate(engine.network.layers):
        suffix = "" if ("A", i, i) in engine.store.current else ".reduced"
        A, G = (engine.store.current[f"{name}{suffix}", i, i] for name in "AG")
        found[layer.path] = torch.kron(A, G)
    return found


def exact(model, x):
    """Layer name -> its block of the exact Fisher of a Gaussian."""
    z = model(x).detach().flatten(1)
    middle = conv_oracle.root("gaussian", z)
    return {
        name: conv_oracle.fisher(jac, middle)
        for name, jac in conv_oracle.by_layer(model, x).items()
    }


def close(left, right, tol=1e-9):
    torch.testing.assert_close(left, right, rtol=tol, atol=tol)


def far(left, right):
    assert (left - right).norm() > 0.02 * right.norm()


# --- where the approximations are exact -----------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "dilation": 2, "padding": "same", "padding_mode": "circular"},
        {"kernel_size": (3, 1), "padding": (2, 0)},
    ],
)
def test_expand_is_exact_where_each_position_has_its_own_loss(given, bias):
    model = seeded(nn.Conv2d(2, 3, bias=bias, **given))
    x = draw(5, 2, 5, 4)
    close(undamped(model, x)["0"], exact(model, x)["0"])
    far(undamped(model, x, REDUCE)["0"], exact(model, x)["0"])


def test_expand_is_exact_in_deep_linear_networks_of_1x1_convolutions():
    model = seeded(nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    x = draw(4, 2, 3, 2)
    found, wanted = undamped(model, x), exact(model, x)
    assert list(found) == ["0", "1", "2"]
    for name in found:
        close(found[name], wanted[name])


@pytest.mark.parametrize("block", ["kronecker", REDUCE])
def test_both_are_exact_with_a_single_position(block):
    model = seeded(nn.Conv2d(2, 3, (3, 4)), nn.Flatten(), nn.Linear(3, 2))
    x = draw(6, 2, 3, 4)
    found, wanted = undamped(model, x, block), exact(model, x)
    for name in ("0", "2"):
        close(found[name], wanted[name])


def test_reduce_is_exact_in_linear_networks_that_average_their_positions():
    around = {"padding": 1, "padding_mode": "circular"}  # so that all positions are alike
    model = seeded(
        nn.Conv2d(2, 3, 3, **around),
        nn.Conv2d(3, 4, 3, **around),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    x = draw(6, 2, 4, 4)
    wanted, reduced, expanded = exact(model, x), undamped(model, x, REDUCE), undamped(model, x)
    for name in ("0", "1", "4"):
        close(reduced[name], wanted[name])
    for name in ("0", "1"):
        far(expanded[name], wanted[name])


def test_groups_are_exact_where_they_see_the_same():
    model = seeded(nn.Conv2d(4, 6, 2, groups=2))
    half = draw(5, 2, 3, 3)
    x = torch.cat([half, half], 1)
    close(undamped(model, x)["0"], exact(model, x)["0"])
    other = torch.cat([half, 3 * half], 1)
    far(undamped(model, other)["0"], exact(model, other)["0"])


def test_reduce_keeps_groups_apart():
    model = seeded(nn.Conv2d(4, 4, 2, groups=4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2))
    quarter = draw(6, 1, 3, 3)
    x = torch.cat([quarter, -quarter, quarter, -quarter], 1)  # their sum would vanish
    wanted, found = exact(model, x)["0"], undamped(model, x, REDUCE)["0"]
    own = torch.arange(wanted.shape[0]) % 4  # the output, columns stacked
    same = own[:, None] == own[None, :]
    # Without the bias: the second moments of the groups agree but for the sign against the 1.
    weights = torch.arange(wanted.shape[0]) < 16
    mask = same & weights[:, None] & weights[None, :]
    close(found[mask], wanted[mask])
    assert found[~same].abs().max() == 0


# --- whole steps ----------------------------------------------------------------------------------


def networks():
    yield seeded(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, groups=2, dilation=1, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 16, 3),
    )
    yield seeded(
        nn.Conv2d(2, 2, 2, groups=2, bias=False),
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(2, 3, (1, 2), dilation=(1, 1)),
        nn.MaxPool2d((2, 1)),
        nn.Flatten(),
    )


@pytest.mark.parametrize("generic", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("which", [0, 1])
def test_steps_equal_the_dense_reference(which, likelihood, reduced, generic):
    model = list(networks())[which]
    x = draw(7, 2, 5, 5)
    outputs = model(x).shape[1]
    y = torch.arange(7) % outputs if likelihood == "categorical" else draw(7, outputs, seed=5)
    names = [n for n, m in model.named_children() if isinstance(m, nn.Conv2d)] if reduced else ()
    wanted = conv_oracle.steps(
        copy.deepcopy(model), likelihood, x, y, 3, 0.1, 0.2, 1e-3, reduced=names
    )
    trained = Outside(model) if generic else model
    run = run_of(trained, x, y, likelihood, REDUCE if reduced else "kronecker", l2=1e-3)
    assert (run.stepper.passes.plan is None) == generic
    for theta in wanted:
        run.advance(1)
        close(torch.cat([p.detach().flatten() for p in model.parameters()]), theta, 1e-8)


def test_the_paths_agree_with_transposed_convolutions():
    def model():
        return seeded(
            nn.Conv1d(2, 4, 3, stride=2),
            nn.Tanh(),
            nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2, output_padding=1),
            nn.ReLU(),
            nn.Unflatten(2, (2, 5)),
            nn.ConvTranspose2d(4, 2, 2, stride=2, padding=1),
        )

    x = draw(6, 2, 9)
    y = draw(*model()(x).shape, seed=5)
    explicit, generic = model(), model()
    a, b = run_of(explicit, x, y), run_of(Outside(generic), x, y)
    assert a.stepper.passes.plan is not None and b.stepper.passes.plan is None
    a.advance(3), b.advance(3)
    for p, q in zip(explicit.parameters(), generic.parameters(), strict=True):
        close(p.detach(), q.detach())


def test_a_kronecker_reduce_that_cannot_be_is_refused():
    for inner in ("diagonal", "identity", "kronecker(factor_a='diagonal')"):
        with pytest.raises(kl.RecipeError, match="block of the dense factors"):
            kl.Recipe(block=f'kronecker_reduce(inner="{inner}")')


def test_a_swap_between_expand_and_reduce():
    model = next(networks())
    x = draw(7, 2, 5, 5)
    run = run_of(model, x, torch.arange(7) % 3, "categorical")
    run.advance(2)
    run.swap(block=REDUCE)
    run.advance(2)
    assert {row.block for row in run.coverage()} == {"KroneckerReduce", "Kronecker"}
    run.swap(block="kronecker")
    run.advance(2)
    assert run.history["loss"][-1] < run.history["loss"][0]
