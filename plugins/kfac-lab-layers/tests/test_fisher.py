"""Blocks against the dense Fisher where theory says that they are exact."""

import pytest
import torch
from dense_fisher import categorical_fisher, gaussian_fisher, places
from devices import here
from layer_samples import attention, double
from torch import nn

import kfac_lab as kl

EXACT = {
    "estimator": "exact(fraction=1.0)",
    "quadratic_model": "exact_fisher(fraction=1.0)",
    "average": "none",
}


def blocks_of(model, inputs, likelihood="gaussian", block="kronecker"):
    """Layer path → (block of F̆ as the first step sees it, parameter names, its layer)."""
    with torch.no_grad():
        outputs = model(inputs)
    targets = torch.randn_like(outputs)
    if likelihood == "categorical":
        targets = outputs.argmax(-1)
    problem = kl.Problem(model=model, likelihood=likelihood, inputs=inputs, targets=targets)
    recipe = kl.Recipe.named("paper").replace(
        block=block, batch=f"constant(size={len(inputs)})", **EXACT
    )
    run = kl.Run(problem, recipe, device=here()).advance(1)
    store, found = run.stepper.store, {}
    for i, use in enumerate(run.stepper.network.uses):
        moments = store.table(spare=False)[i]
        factors = []
        for name in "AG":
            kept = moments[name] if name in moments else torch.diag(moments[f"{name}.diagonal"])
            factors.append(kept)
        found[use.layer.path] = (torch.kron(*factors), use.parameters, use.layer)
    return found


def of_fisher(F, model, names, layer):
    """The same block of the dense F, its parameters in the order of column-stacked vec."""
    order = layer.pack(places(model, names)).t().reshape(-1)
    return F[order][:, order]


def check_blocks(model, inputs, only=None, likelihood="gaussian", block="kronecker"):
    """The blocks called ``only``, or all."""
    dense = gaussian_fisher if likelihood == "gaussian" else categorical_fisher
    F = dense(model, inputs).detach()
    assert float(F.norm()) > 0.1
    found = blocks_of(model, inputs, likelihood, block)
    for path, (ours, names, layer) in found.items():
        if only is None or path in only:
            expected = of_fisher(F, model, names, layer)
            assert float(expected.norm()) > 1e-3, path
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
    return found


# --- embeddings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9,), (9, 4)])
@pytest.mark.parametrize("factor_a", ["dense", "diagonal"])
def test_a_deep_linear_net_on_tokens(shape, factor_a):
    """Embedding and Linears: every block is exact, for any number of cases and positions."""
    model = double(nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 4), nn.Linear(4, 2)))
    block = {"Embedding": f"kronecker(factor_a='{factor_a}')", "*": "kronecker"}
    found = check_blocks(model, torch.randint(0, 5, shape), block=block)
    assert set(found) == {"0", "1", "2"}


def test_padding_is_in_no_block():
    """The padding's row of the table has no curvature, as it has no gradient."""
    model = double(nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 2)))
    found = check_blocks(model, torch.tensor([0, 1, 2, 1, 4, 3, 1]))
    block, _, _ = found["0"]
    assert float(block[3:6].abs().max()) == 0 < float(block[:3].abs().max())


class Pair(nn.Module):
    """Source and target through modules of their own that share their parameters."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(5, 3), nn.Embedding(5, 3)
        self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)
        self.target.weight = self.source.weight
        self.two.weight, self.two.bias = self.one.weight, self.one.bias

    def forward(self, tokens):
        """One output for each."""
        one = self.one(self.source(tokens[:, 0]))
        return torch.cat([one, self.two(self.target(tokens[:, 1]))], 1)


def test_a_tied_deep_linear_net():
    """Uses of equal geometry are positions: exact where their outputs are terms apart."""
    found = check_blocks(double(Pair()), torch.randint(0, 5, (9, 2)))
    assert {p: names for p, (_, names, _) in found.items()} == {
        "source": ("source.weight",),
        "one": ("one.weight", "one.bias"),
    }


class InARow(nn.Module):
    """The same Linear twice in a row: uses that meet in one output."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x):
        """W W x."""
        return self.two(self.one(x))


def test_a_linear_net_tied_in_a_row():
    """Not exact: (Σ_s A_s) ⊗ mean_s G_s, from the dense terms; F itself has Σ_{s,s'}."""
    model, x = double(InARow()), torch.randn(9, 3, dtype=torch.float64)
    W = model.one.weight.detach().clone()
    F = gaussian_fisher(model, x).detach()
    ((ours, _, _),) = blocks_of(model, x).values()
    eye = torch.eye(3, dtype=torch.float64)
    inputs, pulled = [x, x @ W.t()], [W.t(), eye]  # g = pulled · (derivative at the output)
    A = sum(a.t() @ a for a in inputs) / 9
    G = sum(p @ p.t() for p in pulled) / 2
    torch.testing.assert_close(ours, torch.kron(A, G), rtol=1e-10, atol=1e-12)
    exact = 0  # and the oracle is the sum over both uses
    for a, p in zip(inputs, pulled, strict=True):
        for b, q in zip(inputs, pulled, strict=True):
            exact = exact + torch.kron(a.t() @ b / 9, p @ q.t())
    order = torch.arange(9).view(3, 3).t().reshape(-1)
    torch.testing.assert_close(F[order][:, order], exact, rtol=1e-10, atol=1e-12)
    assert float((ours - exact).norm() / exact.norm()) > 0.05


# --- normalisation --------------------------------------------------------------------------------


def normed(module, *before, wide=5):
    """A net that is not linear anywhere, on five numbers or on 4×3 places."""
    return double(nn.Sequential(*before, module, nn.Tanh(), nn.Flatten(), nn.Linear(wide, 3)))


def nets():
    """Name → (net, inputs, path of the norm layer)."""
    torch.manual_seed(1)
    x, places = torch.randn(7, 5).double(), torch.randn(7, 4, 3).double()
    five = [nn.Linear(5, 5), nn.Tanh()]
    three = [nn.Linear(3, 3), nn.Tanh()]
    made = {
        "layer": (normed(nn.LayerNorm(5), *five), x, "2"),
        "layer, no shift": (normed(nn.LayerNorm(5, bias=False), *five), x, "2"),
        "layer, positions": (normed(nn.LayerNorm(3), *three, wide=12), places, "2"),
        "rms": (normed(nn.RMSNorm(5), *five), x, "2"),
        "group": (normed(nn.GroupNorm(2, 4), *three, wide=12), places, "2"),
        "batch, frozen": (normed(nn.BatchNorm1d(5), *five), x, "2"),
        "batch, frozen, places": (normed(nn.BatchNorm1d(4), *three, wide=12), places, "2"),
    }
    for name, (net, inputs, _) in made.items():
        net(inputs)  # gives the running statistics values
        net.train("frozen" not in name)
    return made


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
@pytest.mark.parametrize("name", nets())
def test_scale_and_shift_have_their_whole_block(name, likelihood):
    """In any net: the Fisher's own block, positions summed case by case."""
    net, x, path = nets()[name]
    check_blocks(net, x, only={path}, likelihood=likelihood)


@pytest.mark.parametrize("name", ["layer, positions", "group", "rms"])
def test_their_diagonal_is_the_diagonal_of_the_fisher(name):
    """E[(Σ_t g_t ⊙ x̂_t)²] and E[(Σ_t g_t)²], by either block that keeps the diagonal alone."""
    net, x, path = nets()[name]
    F = gaussian_fisher(net, x).detach()
    for block in ("kronecker(factor_g='diagonal')", "diagonal"):
        net, x, path = nets()[name]
        rules = {path: block, "*": "kronecker"}
        problem = kl.Problem(
            model=net, likelihood="gaussian", inputs=x, targets=torch.zeros(7, 3).double()
        )
        recipe = kl.Recipe.named("paper").replace(block=rules, batch="constant(size=7)", **EXACT)
        run = kl.Run(problem, recipe, device=here()).advance(1)
        uses = run.stepper.network.uses
        (i,) = [n for n, use in enumerate(uses) if use.layer.path == path]
        expected = of_fisher(F, net, uses[i].parameters, uses[i].layer).diagonal()
        moments, part_state = (
            run.stepper.store.table(spare=False)[i],
            run.stepper.state_.block_states[i],
        )
        ours = part_state["curvature"].reshape(-1) if block == "diagonal" else moments["G.diagonal"]
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


# --- attention ------------------------------------------------------------------------------------


class OnePosition(nn.Module):
    """Attention over one position is the value itself: a deep linear net."""

    def __init__(self, **arguments):
        super().__init__()
        self.attention, self.last = attention(**arguments), nn.Linear(4, 2)

    def forward(self, x):
        """Of ``[N, 4]``, or of ``[N, 1, 4]``."""
        x = x.unsqueeze(1)
        return self.last(self.attention(x, x, x)[0]).squeeze(1)


@pytest.mark.parametrize("arguments", [{}, {"bias": False}])
def test_attention_to_one_position(arguments):
    """Its two blocks are exact; nothing depends on query and key."""
    found = check_blocks(double(OnePosition(**arguments)), torch.randn(9, 4).double())
    block, names, layer = found["attention"]
    assert names[0] == "attention.in_proj_weight"
    by_third = block.view(layer.d_in, 3, 4, layer.d_in, 3, 4)
    assert float(by_third[:, :2].abs().max()) == 0 < float(by_third[:, 2].abs().max())
    assert "attention.out_proj" in found
