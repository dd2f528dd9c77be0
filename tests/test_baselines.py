"""The baselines: their updates against plain loops and an oracle, and the laws of a Stepper."""

import io
import json
from pathlib import Path

import pytest
import torch
from oracles.schedules import nesterov_mu, nesterov_path, polyak_path
from torch import nn

import kfac_lab as kl
from kfac_lab import baselines
from kfac_lab.baselines import Adam, Muon, Nag, Soap, tuned
from kfac_lab.baselines.tuning import TUNED
from kfac_lab.errors import CheckpointError, CoverageError, NumericalError, RecipeError
from kfac_lab.paper.averaging import NoAverage, Polyak
from kfac_lab.paper.schedules import Constant

METHODS = [
    Nag(lr=0.01, mu_max=0.9),
    Adam(lr=0.01, decay=0.5, total_steps=12),
    Muon(lr=0.01, adam_lr=0.003, decay=0.5, total_steps=12),
    Muon(lr=0.02, momentum=0.9, adjust="match_rms_adamw", hidden_only=True, ns_steps=3),
    Soap(lr=0.01, every=3, decay=0.5, total_steps=12),
]
METHOD_IDS = ["nag", "adam", "muon", "muon_hidden_only", "soap"]
every_method = pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)


@pytest.fixture(autouse=True)
def has_muon(request: pytest.FixtureRequest) -> None:
    method = getattr(request.node, "callspec", None) and request.node.callspec.params.get("method")
    if isinstance(method, Muon) and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no Muon")


def tiny(dtype=torch.float32, device="cpu", noisy=False, l2=0.01, seed=0) -> kl.Problem:
    """40 cases, three layers; with `noisy` also dropout and the buffers of a batch norm."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)]
        if noisy:
            layers[2:2] = [nn.BatchNorm1d(5), nn.Dropout(0.2)]
        model = nn.Sequential(*layers).to(device, dtype)
        torch.manual_seed(1)
        x = torch.randn(40, 6).to(device, dtype)
        y = torch.rand(40, 4).to(device, dtype)
    return kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=l2)


def attach(method, problem, seed=0, size=16, average=None, **options):
    recipe = {"batch": Constant(size), "average": average or Polyak()}
    return method.attach(problem, recipe, seed, **options)


def theta(problem):
    return [p.detach().clone() for p in problem.model.parameters()]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def same(a, b) -> bool:
    """Two trees, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def clocked(state):
    """A state without its seconds."""
    pairs = state["tree"]["items"]
    return [pair for pair in pairs if pair[0] != "seconds"]


# ---- the updates ---------------------------------------------------------------------------------


def gradients(problem, k, seed, size):
    """∇h on the batch of step k, and h itself, by hand: Bernoulli outputs."""
    parameters = list(problem.model.parameters())
    x, y, _ = problem.draw(k, size, seed)
    z = problem.model(x)
    cotangent = (torch.sigmoid(z.detach()) - y) / len(x)
    return torch.autograd.grad(z, parameters, cotangent)


@pytest.mark.parametrize("mu_max", [0.6, 0.99])
def test_nag_follows_the_oracles_path_across_a_change_of_mu(mu_max: float) -> None:
    problem, steps, rate = tiny(torch.float64), 256, 0.02
    model, x, y = problem.model, problem.inputs, problem.targets
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    names = {n: p.shape for n, p in model.named_parameters()}

    def gradient(point):
        point = point.detach().requires_grad_()
        parts = point.split([s.numel() for s in names.values()])
        own = {n: t.view(s) for (n, s), t in zip(names.items(), parts, strict=True)}
        z = torch.func.functional_call(model, own, (x,))
        h = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(x)
        h = h + 0.5 * problem.l2 * point.square().sum()
        return torch.autograd.grad(h, point)[0]

    path = nesterov_path(start, gradient, rate, mu_max, steps)
    stepper = attach(Nag(lr=rate, mu_max=mu_max), problem, size=40)
    for t in range(steps):
        record = stepper.step()
        assert record.mu == pytest.approx(nesterov_mu(t, mu_max), abs=1e-15)
        if t % 50 == 49 or t in (0, 1, 248, 250, 251, 255):
            velocity = path[t + 1] - path[t]
            look_ahead = path[t + 1] + nesterov_mu(t + 1, mu_max) * velocity
            own = nn.utils.parameters_to_vector(model.parameters()).detach()
            torch.testing.assert_close(own, look_ahead, rtol=1e-9, atol=1e-11)


def test_nag_without_momentum_is_gradient_descent() -> None:
    problem = tiny(torch.float64, l2=0.0)
    expected = [
        p - 0.1 * g for p, g in zip(theta(problem), gradients(problem, 1, 0, 16), strict=True)
    ]
    attach(Nag(lr=0.1, mu_max=0.0), problem).step()
    torch.testing.assert_close(theta(problem), expected, rtol=1e-13, atol=1e-15)


def test_nag_ends_with_a_lower_mu() -> None:
    method = Nag(lr=1e-4, mu_max=0.99, final=0.25, total_steps=2400)
    stepper = attach(method, tiny())
    stepper.step_count, stepper._mu = 1798, nesterov_mu(1798, 0.99)
    stepper._averaged = (1798, stepper._averaged[1])
    mus = [stepper.step().mu for _ in range(4)]
    assert mus == [nesterov_mu(1798, 0.99)] * 3 + [0.9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["adam", "muon", "muon_hidden_only"])
def test_adam_and_muon_are_pytorchs_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    steps, method = 12, METHODS[METHOD_IDS.index(kind)]
    if kind != "adam" and not hasattr(torch.optim, "Muon"):
        pytest.skip(f"PyTorch {torch.__version__} has no Muon")
    plain, ours = tiny(dtype), tiny(dtype)
    parameters = list(plain.model.parameters())
    if kind == "adam":
        settings = {"weight_decay": plain.l2, "fused": True}
        optimisers = [torch.optim.Adam(parameters, lr=method.lr, **settings)]
    else:
        matrices = [p for p in parameters if p.dim() == 2]
        matrices = matrices[1:-1] if method.hidden_only else matrices
        others = [p for p in parameters if all(p is not m for m in matrices)]
        settings = {"momentum": method.momentum, "ns_steps": method.ns_steps, "weight_decay": 0.0}
        optimisers = [
            torch.optim.Muon(matrices, lr=method.lr, adjust_lr_fn=method.adjust, **settings),
            torch.optim.Adam(others, lr=method.adam_lr, fused=True),
        ]
    first = [o.param_groups[0]["lr"] for o in optimisers]
    stepper = attach(method, ours, seed=3)
    for k in range(1, steps + 1):
        left = 1 - (k - 1) / steps
        faded = min(left / method.decay, 1.0) if method.total_steps else 1.0
        for p, g in zip(parameters, gradients(plain, k, 3, 16), strict=True):
            p.grad = g if kind == "adam" else torch.add(g, p.detach(), alpha=plain.l2)
        for optimiser, lr in zip(optimisers, first, strict=True):
            optimiser.param_groups[0]["lr"] = lr * faded
            optimiser.step()
        record = stepper.step()
        assert record.lr == pytest.approx(method.lr * faded)
    assert equal(theta(plain), theta(ours))


def soap_path(weights, gradient, method, steps):
    """SOAP by vec and Kronecker products, a matrix in float64 (Vyas et al. 2024, algorithm 3)."""
    w = weights.clone()
    m = torch.zeros_like(w)
    v = torch.zeros(w.numel(), dtype=w.dtype)
    left = right = None
    for k in range(steps):
        g = gradient(w)
        new_left, new_right = g @ g.T, g.T @ g
        if k == 0:
            left, right = new_left, new_right
            ql, qr = torch.linalg.eigh(left)[1].flip(1), torch.linalg.eigh(right)[1].flip(1)
            continue
        b = method.shampoo_beta
        left, right = b * left + (1 - b) * new_left, b * right + (1 - b) * new_right
        if (k + 1) % method.every == 0:
            ql, qr = torch.linalg.qr(left @ ql)[0], torch.linalg.qr(right @ qr)[0]
        basis = torch.kron(ql, qr)  # rows stacked: vec(Q_Lᵀ G Q_R) = basisᵀ vec(G)
        m = method.beta1 * m + (1 - method.beta1) * g
        v = method.beta2 * v + (1 - method.beta2) * (basis.T @ g.flatten()) ** 2
        step = (basis.T @ m.flatten()) / (1 - method.beta1**k)
        step = step / ((v / (1 - method.beta2**k)).sqrt() + method.eps)
        w = w - method.lr * (basis @ step).view_as(w)
    return w


def test_soap_is_adam_in_the_eigenbases() -> None:
    torch.manual_seed(0)
    target, start = torch.randn(4, 6).double(), torch.randn(4, 6).double()
    weights = torch.rand(4, 6).double() + 0.5
    method = Soap(lr=0.02, every=3, beta1=0.8, beta2=0.9, shampoo_beta=0.7)

    def gradient(w):
        return weights * (w - target).tanh()

    p = start.clone()
    settings = (method.lr, (method.beta1, method.beta2), method.shampoo_beta, method.every)
    own = baselines.SoapOptimizer([p], *settings, method.max_side, method.eps)
    for _ in range(14):
        p.grad = gradient(p)
        own.step()
    expected = soap_path(start, gradient, method, 14)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-8)
    assert (p - start).abs().max() > 0.1


def test_soap_without_rotation_is_adam() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5, 3).double(), None
    q = p.clone()
    own = baselines.SoapOptimizer([p], 0.01, (0.9, 0.99), 0.95, 10, 1, 1e-8)
    adam = torch.optim.Adam([q], lr=0.01, betas=(0.9, 0.99))
    p.grad = torch.randn(5, 3).double()
    own.step()  # makes bases, moves nothing
    for _ in range(5):
        p.grad = torch.randn(5, 3).double()
        q.grad = p.grad.clone()
        own.step()
        adam.step()
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_nag_may_let_its_rate_decay() -> None:
    stepper = attach(Nag(lr=0.01, decay=0.5), tiny(), total_steps=4)
    assert [stepper.step().lr for _ in range(5)] == pytest.approx([0.01, 0.01, 0.01, 0.005, 0])


def test_rates_need_an_end_to_decay() -> None:
    muon = [Muon(decay=1.0)] if hasattr(torch.optim, "Muon") else []
    for method in (Adam(decay=1.0), Soap(decay=1.0), *muon):
        endless = attach(method, tiny())
        assert [endless.step().lr for _ in range(4)] == [method.lr] * 4
        ending = attach(method, tiny(), total_steps=4)
        rates = [ending.step().lr / method.lr for _ in range(5)]
        assert rates == pytest.approx([1, 0.75, 0.5, 0.25, 0] if method.decay else [1] * 5)
    stepper = attach(Adam(decay=0.5), tiny(), total_seconds=100.0)
    stepper.seconds = 75.0
    assert stepper.step().lr == pytest.approx(0.0005)


def test_a_run_has_one_end() -> None:
    with pytest.raises(RecipeError, match="not both"):
        kl.Recipe(method="adam(total_steps=10, total_seconds=1.0)")


# ---- the record ----------------------------------------------------------------------------------


@every_method
def test_the_record_is_h_before_the_move(method) -> None:
    problem = tiny(torch.float64)
    stepper = attach(method, problem)
    for k in range(1, 4):
        x, y, _ = problem.draw(k, 16, 0)
        z = problem.model(x).detach()
        h = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / 16
        h += 0.5 * problem.l2 * sum(t.square().sum() for t in theta(problem))
        record = stepper.step()
        assert float(record.loss) == pytest.approx(float(h), rel=1e-12)
        error = (torch.sigmoid(z) - y).square().sum() / 16
        assert float(record.error) == pytest.approx(float(error), rel=1e-12)
        assert (record.step, record.batch, record.eta) == (k, 16, problem.l2)
        assert record.lam != record.lam and record.rho != record.rho
        assert record.seconds == stepper.seconds > 0
        assert stepper.step_count == k and stepper.record is record


def test_chunks_change_nothing_but_rounding() -> None:
    whole, parts = tiny(torch.float64), tiny(torch.float64)
    a, b = attach(Adam(), whole, size=40), attach(Adam(), parts, size=40, chunk=7)
    for _ in range(3):
        assert float(a.step().loss) == pytest.approx(float(b.step().loss), rel=1e-12)
    torch.testing.assert_close(theta(whole), theta(parts), rtol=1e-9, atol=1e-12)


class Shared(nn.Module):
    """Two parameters whose gradients are one tensor, and one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(4, 4))
        self.b = nn.Parameter(torch.ones(4, 4))
        self.idle = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return x @ (self.a + self.b)


@every_method
def test_gradients_that_are_one_tensor_stay_apart(method) -> None:
    x = torch.eye(4)
    problem = kl.Problem(model=Shared(), likelihood="gaussian", inputs=x, targets=x, l2=0.5)
    _, _, found, _ = attach(method, problem, size=4, chunk=2)._evaluate(x, x, 1)
    g = (problem.model.b.detach() - x) / 4
    if isinstance(method, (Muon, Soap)):
        expected = [g, g + 0.5, torch.full((4, 4), 0.5)]
    else:
        expected = [g, g, torch.zeros(4, 4)]  # PyTorch's kernel adds the ℓ2 term
    torch.testing.assert_close(found, expected)


class Strided(nn.Module):
    """A parameter that is a view with gaps in memory, and gradients laid out unlike theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps = nn.Parameter(torch.arange(32.0).view(4, 8)[:, ::2])
        self.w = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return (self.w.t() * x.t().contiguous() + self.gaps.t()).t()


@pytest.mark.parametrize("method", METHODS[:2], ids=METHOD_IDS[:2])
def test_memory_layout_plays_no_part(method) -> None:
    x = torch.rand(4, 4)
    states = []
    for model in (Strided(), Strided()):
        if states:
            model.gaps = nn.Parameter(model.gaps.detach().contiguous())
        problem = kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=x)
        stepper = attach(method, problem, size=4)
        for _ in range(3):
            stepper.step()
        states.append(theta(problem))
    torch.testing.assert_close(states[0], states[1])


@every_method
def test_the_users_gradients_and_frozen_parameters_are_left_alone(method) -> None:
    problem = tiny()
    frozen = problem.model[0].weight.requires_grad_(False)
    before = frozen.clone()
    own = problem.model[2].weight.grad = torch.full((7, 5), 7.0)
    stepper = attach(method, problem)
    stepper.step()
    assert torch.equal(frozen, before) and "0.weight" not in stepper.names
    assert problem.model[2].weight.grad is own and torch.equal(own, torch.full((7, 5), 7.0))
    assert problem.model[4].weight.grad is None
    kinds = {row.parameter: (row.kind, row.block) for row in stepper.coverage()}
    assert len(kinds) == 6 and kinds["0.weight"] == ("frozen", "-")
    if isinstance(method, Muon):
        movers = [kinds[n][1] for n in ("2.weight", "2.bias", "4.weight")]
        assert movers == ["adam" if method.hidden_only else "muon", "adam"] + (
            ["adam"] if method.hidden_only else ["muon"]
        )


def test_a_model_given_other_memory_is_still_the_one_trained() -> None:
    problem = tiny()
    stepper = attach(Adam(), problem)
    stepper.step()
    for p in problem.model.parameters():
        p.data = p.data.clone()
    before = theta(problem)
    stepper.step()
    assert not equal(before, theta(problem))


# ---- a function of the seed; saved and loaded; whole or not at all -------------------------------


@every_method
def test_the_same_seed_gives_the_same_run(method, device) -> None:
    runs = []
    for seed in (0, 0, 1):
        problem = tiny(device=device, noisy=True)
        stepper = attach(method, problem, seed)
        for _ in range(5):
            stepper.step()
            torch.rand(3, device=device)  # the global generator plays no part
        runs.append(theta(problem))
    assert equal(runs[0], runs[1]) and not equal(runs[0], runs[2])


@every_method
def test_a_saved_stepper_goes_on_bit_for_bit(method) -> None:
    problem, other = tiny(noisy=True), tiny(noisy=True, seed=5)
    stepper, loaded = attach(method, problem), attach(method, other, seed=9)
    for _ in range(7):
        stepper.step()
    file = io.BytesIO()
    torch.save(stepper.state(), file)
    file.seek(0)
    loaded.load(torch.load(file, weights_only=True))
    assert same(loaded.state(), stepper.state())
    for _ in range(5):
        stepper.step(), loaded.step()
    assert same(clocked(loaded.state()), clocked(stepper.state()))
    assert equal(stepper.average(), loaded.average()) and loaded.step_count == 12


@every_method
def test_a_state_is_a_copy(method) -> None:
    stepper = attach(method, tiny())
    stepper.step()
    state = stepper.state()
    kept = torch.save(state, file := io.BytesIO()), file.getvalue()
    stepper.step()
    stepper.load(state)
    stepper.step()
    torch.save(state, again := io.BytesIO())
    assert kept[1] == again.getvalue()


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    stepper = attach(Adam(), tiny())
    stepper.step()
    before = stepper.state()
    wider = kl.Problem(
        model=nn.Linear(6, 4),
        likelihood="bernoulli",
        inputs=torch.randn(9, 6),
        targets=torch.rand(9, 4),
    )
    for state, said in (
        (attach(Nag(), tiny()).state(), "'nag', not by 'adam'"),
        (attach(Adam(), wider).state(), "another network"),
        (attach(Adam(), tiny(noisy=True)).state(), "another network"),
        ({"format": 0}, "format 0"),
    ):
        with pytest.raises(CheckpointError, match=said):
            stepper.load(state)
        assert same(stepper.state(), before)


class Broken(Exception):
    pass


def _raise(*_, **__):
    raise Broken


VERBS = ["draw", "forward", "loss", "error", "gradient", "average", "first", "last"]


@pytest.mark.parametrize("verb", VERBS)
@every_method
def test_an_exception_leaves_everything_unchanged(method, verb: str, monkeypatch) -> None:
    problem, twin = tiny(noisy=True), tiny(noisy=True)
    stepper, undisturbed = attach(method, problem), attach(method, twin)
    for _ in range(3):
        stepper.step(), undisturbed.step()
    record = stepper.record
    before = undisturbed.state()  # asking the other one: asking takes θ into the average
    with monkeypatch.context() as patch:
        if verb == "draw":
            patch.setattr(problem, "draw", _raise)
        elif verb == "forward":
            handle = problem.model[4].register_forward_hook(_raise)
        elif verb == "average":
            patch.setattr(Polyak, "update", _raise)
        elif verb in ("first", "last"):
            patch.setattr(stepper._optimisers[-(verb == "last")], "step", _raise)
        else:
            patch.setattr(type(problem.likelihood), verb, _raise)
        with pytest.raises(Broken):
            stepper.step()
        if verb == "forward":
            handle.remove()
    assert stepper.record is record
    assert same(clocked(stepper.state()), clocked(before))
    for _ in range(3):
        stepper.step(), undisturbed.step()
    assert same(clocked(stepper.state()), clocked(undisturbed.state()))


@every_method
def test_numbers_that_are_not_finite_do_not_happen(method) -> None:
    problem = tiny()
    stepper = attach(method, problem, size=40)
    stepper.step()
    before = stepper.state()
    problem.inputs[3, 2] = float("nan")
    with pytest.raises(NumericalError, match="step 2"):
        stepper.step()
    assert same(stepper.state(), before)


def test_what_cannot_be_trained_says_so(monkeypatch) -> None:
    problem = tiny()
    problem.model.requires_grad_(False)
    with pytest.raises(CoverageError, match="no trained parameters"):
        attach(Adam(), problem)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(RecipeError, match=r"came with 2\.9"):
        attach(Muon(), tiny())


# ---- the average, swaps --------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("asked", [1, 3], ids=["every_step", "now_and_then"])
def test_the_average_is_the_oracles(method, asked: int) -> None:
    problem = tiny(torch.float64)
    stepper = attach(method, problem, average=Polyak(xi=0.8, ramp=True))
    seen = []
    for k in range(1, 13):
        stepper.step()
        seen.append(theta(problem))
        if k % asked == 0:
            stepper.average()
    for place, average in enumerate(stepper.average()):
        expected = polyak_path([t[place] for t in seen], start=1, xi=0.8)[-1]
        torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-14)
    assert attach(method, tiny(), average=NoAverage()).average() is None


def test_batch_and_average_can_be_swapped() -> None:
    problem = tiny()
    stepper = attach(Nag(), problem)
    stepper.step()
    recipe = {"batch": Constant(8), "average": NoAverage()}
    stepper.swap(recipe, {"batch": {"size"}})
    assert stepper.step().batch == 8 and stepper.average() is not None
    stepper.swap(recipe, {"average": set()})
    assert stepper.average() is None
    stepper.swap({"batch": Constant(8), "average": Polyak()}, {"average": set()})
    assert equal(stepper.average(), theta(problem))


@every_method
def test_a_run_forks_and_rewinds(method) -> None:
    run = kl.Run(tiny(), kl.Recipe(method=method, batch="constant(size=16)"), seed=1)
    run.advance(6)
    other = run.fork()
    run.advance(4), other.advance(4)
    assert equal(theta(run.problem), theta(other.problem))
    there = theta(run.problem)
    run.advance(3)
    run.rewind(10)
    assert equal(theta(run.problem), there)


# ---- the tuning table ----------------------------------------------------------------------------

TABLE = Path(__file__).resolve().parents[1] / "results/tuning.json"


@pytest.mark.parametrize("problem", ["curves", "mnist", "nobody_tuned_this"])
@pytest.mark.parametrize("name", ["nag", "adam", "muon"])
def test_a_tuned_recipe_is_a_recipe(name: str, problem: str) -> None:
    assert kl.Recipe.of(tuned(name, problem)).method == name
    assert kl.Recipe.of(tuned(name, problem, steps=9))["method"].total_steps == 9
    assert kl.Recipe.of(tuned(name, problem, seconds=9))["method"].total_seconds == 9.0


def test_an_unknown_baseline_says_what_there_is() -> None:
    with pytest.raises(RecipeError, match="nag, adam, muon, soap"):
        tuned("sgd", "curves")


def test_the_tuned_recipes_are_the_committed_tables() -> None:
    chosen = json.loads(TABLE.read_text())["chosen"]
    for key, point in chosen.items():
        problem, name = key.split("/")
        assert TUNED[name, problem] == (point["text"], point["batch"])


def test_no_chosen_rate_lies_on_the_edge_of_its_grid() -> None:
    table = json.loads(TABLE.read_text())
    for key, chosen in table["chosen"].items():
        problem, name = key.split("/")
        points = [p for p in table["points"] if (p["problem"], p["method"]) == (problem, name)]
        (best,) = (
            p
            for p in points
            if (p["text"], p["batch"], p["part"]) == (chosen["text"], chosen["batch"], 1.0)
        )
        like = [
            p
            for p in points
            if (p["settings"], p["batch"], p["part"]) == (best["settings"], best["batch"], 1.0)
        ]
        assert all(best["error"] <= p["error"] for p in like if p["error"] is not None)
        assert min(p["lr"] for p in like) < best["lr"] < max(p["lr"] for p in like), key
