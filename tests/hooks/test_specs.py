"""Every hook's docstring holds a complete example, and every example is run and used here.

``USES`` says what each example must do once it is loaded; a hook without an example, or without an
entry in ``USES``, fails.
"""

import ast
import inspect
import re
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kfac_lab as kl
from kfac_lab import engine
from kfac_lab.core.capture import Network
from kfac_lab.core.likelihood import Likelihood
from kfac_lab.core.state import Swap
from kfac_lab.history import History
from kfac_lab.hooks import FAMILIES, Lab, Plugin, specs

HOOKS = {
    name: function
    for name, function in vars(specs).items()
    if name.startswith("kfac_") and inspect.isfunction(function)
}
# "too few cases for the curvature": these runs are about the parts, not about training well
pytestmark = pytest.mark.filterwarnings("ignore:a batch of")

ALLOWED = {"kfac_lab", "torch", "dataclasses"}


def example(hook: str) -> str:
    """The one fenced block of a hook's docstring."""
    found = re.findall(r"```python\n(.*?)```", inspect.getdoc(HOOKS[hook]) or "", re.DOTALL)
    assert len(found) == 1, f"the docstring of {hook} must hold one ```python example"
    return str(found[0])


def loaded(hook: str) -> tuple[Lab, Plugin]:
    """A fresh Lab with the hook's example as a plugin, loaded as an outsider's would be."""
    plugin = types.ModuleType(f"example_of_{hook}")
    exec(compile(example(hook), f"<example of {hook}>", "exec"), plugin.__dict__)
    lab = Lab(entry_points=False)
    record = lab.load_module(plugin, "example", distribution="dist-example")
    return lab, record


def problem() -> kl.Problem:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 5, generator=generator)
    targets = (inputs[:, :2] > 0).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    return kl.Problem(model=model, likelihood="bernoulli", inputs=inputs, targets=targets, l2=1e-3)


def trained(recipe: kl.Recipe, at: kl.Problem | None = None, steps: int = 12) -> Any:
    """An engine after some steps; the loss has fallen."""
    made = engine.attach(at or problem(), recipe, 0)
    losses = [float(made.step().loss) for _ in range(steps)]
    assert losses[-1] < losses[0], losses
    return made


def with_part(lab: Lab, record: Plugin, **more: str) -> kl.Recipe:
    """Small steps with the example's component in its slot."""
    ((slot, (name,)),) = record.slots.items()
    base = kl.Recipe(
        lab=lab,
        batch="constant(size=120)",
        estimator="sampled(fraction=1.0)",
        quadratic_model="exact_fisher(fraction=1.0)",
        schedule="periodic(T1=2, T2=4, T3=4)",
    )
    recipe = base.replace(**{**more, slot: name})
    assert kl.Recipe.from_text(recipe.text(), lab=lab) == recipe
    assert lab.entry(slot, name).summary
    return recipe


# --- what each example does -----------------------------------------------------------------------


def estimators(lab: Lab, record: Plugin) -> None:
    trained(with_part(lab, record))
    component = lab.component("estimator", "repeated(samples=4000)")
    z = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    draws = iter(torch.rand(4000, 1, 2, dtype=torch.float64))
    likelihood: Likelihood = problem().likelihood
    cotangents = torch.cat(list(component.cotangents(likelihood, z, z, lambda _: next(draws))))
    p = torch.sigmoid(z[0])
    assert torch.allclose(cotangents.t() @ cotangents, torch.diag(p * (1 - p)), atol=0.02)


def blocks(lab: Lab, record: Plugin) -> None:
    made = trained(with_part(lab, record))
    matrix = torch.arange(20.0).reshape(4, 5)
    block = lab.component("block", "scalar")
    moments = {"A.diagonal": torch.ones(5), "G.diagonal": torch.full((4,), 2.0)}
    factored, part_state = block.factorise(moments, {})
    inverse = block.damped(factored, part_state, kl.DampingStrength(1.0, 3.0, 0.0), None)
    assert torch.allclose(inverse.apply(matrix), matrix / 11)
    applied = (inverse.dense() @ matrix.t().reshape(-1)).reshape(5, 4).t()
    assert torch.allclose(applied, matrix / 11)
    assert {row.block.lower() for row in made.coverage()} == {"scalar"}


def structures(lab: Lab, record: Plugin) -> None:
    """With scale 1 it is block_diagonal."""
    mine = trained(with_part(lab, record))
    theirs = trained(with_part(lab, record).replace(structure="block_diagonal"))
    for a, b in zip(
        mine.problem.model.parameters(), theirs.problem.model.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def models(lab: Lab, record: Plugin) -> None:
    made = engine.attach(problem(), with_part(lab, record, momentum="rescaled"), 0)
    plain = engine.attach(problem(), with_part(lab, record, momentum="rescaled").replace(
        quadratic_model="exact_fisher(fraction=0.25)", damping="constant(lam=0.0, gamma=1.0)"), 0,
    )  # fmt: skip
    made.swap(made.recipe.replace(damping="constant(lam=0.0, gamma=1.0)"),
              {"damping": {"lam", "gamma"}})  # fmt: skip
    ratio = float(made.step().alpha) / float(plain.step().alpha)
    assert ratio < 1  # more curvature, shorter steps
    trained(with_part(lab, record))


def dampings(lab: Lab, record: Plugin) -> None:
    made = trained(with_part(lab, record), steps=5)  # λ was due at 2 and at 4
    strength = made.state_.strength
    assert float(strength.lam) == pytest.approx(150 * 0.95**2)
    assert float(strength.gamma) == pytest.approx((150 * 0.95**2 + 1e-3) ** 0.5)


def momentums(lab: Lab, record: Plugin) -> None:
    recipe = with_part(lab, record)
    made = engine.attach(problem(), recipe.replace(momentum="capped(most=0.01)"), 0)
    records = [made.step() for _ in range(10)]
    assert max(float(r.mu) for r in records[1:]) == pytest.approx(0.01)
    trained(recipe)


def schedules(lab: Lab, record: Plugin) -> None:
    made = engine.attach(problem(), with_part(lab, record).replace(
        schedule="eager(until=2, period=3)"), 0)  # fmt: skip
    due = [made.step().due for _ in range(7)]
    assert [d.inverse for d in due] == [True, True, True, False, False, True, False]
    assert not any(d.gamma for d in due)


def batches(lab: Lab, record: Plugin) -> None:
    made = engine.attach(problem(), with_part(lab, record).replace(
        batch="doubling(start=20, every=2)"), 0)  # fmt: skip
    assert [made.step().batch for _ in range(8)] == [20, 20, 40, 40, 80, 80, 120, 120]


def averages(lab: Lab, record: Plugin) -> None:
    average = lab.component("average", "tail(start=2)")
    part_state = average.init([torch.tensor(5.0)])
    for value in (1.0, 2.0, 6.0):
        before = part_state["mean"][0].clone()
        new = average.update(part_state, [torch.tensor(value)])
        assert torch.equal(part_state["mean"][0], before)  # a part_state is never written into
        part_state = new
    assert float(average.read(part_state)[0]) == 4.0  # θ1 does not count
    trained(with_part(lab, record))


def collectives(lab: Lab, record: Plugin) -> None:
    collective = lab.component("collective", "replicated")
    tensor = torch.tensor([1.0, 2.0])
    collective.mean_([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert collective.owner(["a", "b"], [1.0, 2.0]) == [0, 0]
    trained(with_part(lab, record))


def methods(lab: Lab, record: Plugin) -> None:
    recipe = kl.Recipe(method="descent(lr=0.1)", batch="constant(size=120)", lab=lab)
    assert list(recipe) == ["method", "batch", "average"]
    at = problem()
    stepper = recipe["method"].attach(at, recipe, 0)
    losses = [float(stepper.step().loss) for _ in range(30)]
    assert losses[-1] < losses[0]
    kept = {name: p.clone() for name, p in stepper.state()["model"].items()}
    stepper.step()
    stepper.load({"step": 30, "model": kept})
    assert torch.equal(at.model[0].weight, kept["0.weight"])


def problems(lab: Lab, record: Plugin) -> None:
    ring = lab.entry("problem", "ring").component
    one, same, other = ring(seed=1), ring(seed=1), ring(seed=2)
    assert torch.equal(one.model[0].weight, same.model[0].weight)
    assert not torch.equal(one.model[0].weight, other.model[0].weight)
    assert (len(one.inputs), len(one.test)) == (1500, 500)
    trained(kl.Recipe(batch="constant(size=500)", lab=lab), one)


def recipes(lab: Lab, record: Plugin) -> None:
    steady = kl.Recipe.named("steady", lab=lab)
    assert steady["momentum"] == lab.component("momentum", "rescaled")
    assert steady.block_for("0", nn.Linear(1, 1)) == lab.component("block", "kronecker")
    trained(steady)


def views(lab: Lab, record: Plugin) -> None:
    history = History()
    for step in (1, 2):
        history.append(kl.StepRecord(step=step, rho=0.4 * step))
    plot = lab.component("view", "gain").plot({"a": history}, None)
    (series,) = plot.axes[0].parts
    assert plot.axes[0].y.label == "reduction ratio ρ" and series.run == "a"
    assert list(series.y) == [0.4, 0.8]


def layers(lab: Lab, record: Plugin) -> None:
    """A model of the claimed modules trains as the same model of nn.Linear does, up to rounding."""
    mixed = record.module.Mixed

    class Sub(mixed):  # type: ignore[misc,valid-type]
        pass

    assert lab.claim_layer(Sub(2, 3), "a") is None
    made = []
    for kind in (mixed, lambda i, o: nn.Linear(i, o, bias=False)):
        at = problem()
        at.model = nn.Sequential(kind(5, 4), nn.Tanh(), kind(4, 2)).double()
        at.inputs, at.targets = at.inputs.double(), at.targets.double()
        generator = torch.Generator().manual_seed(3)
        for p, shape in zip(at.model.parameters(), ((4, 5), (2, 4)), strict=True):
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            p.data.copy_(weight.t() if kind is mixed else weight)
        recipe = kl.Recipe(
            lab=lab,
            batch="constant(size=120)",
            estimator="sampled(fraction=1.0)",
            quadratic_model="exact_fisher(fraction=1.0)",
        )
        made.append(trained(recipe, at, steps=4))
    theta = [list(each.problem.model.parameters()) for each in made]
    for a, b in zip(*theta, strict=True):
        assert torch.allclose(a.t(), b, rtol=1e-6)
    assert {row.claimed_by for row in made[0].coverage()} == {"dist-example/example"}
    network = Network.of(made[0].problem.model, made[0].recipe.claim, False)
    assert len(network.uses) == 2


def likelihoods(lab: Lab, record: Plugin) -> None:
    loss = record.module.WaitingTime()
    likelihood = lab.claim_likelihood(loss)
    assert isinstance(likelihood, Likelihood)
    assert lab.claim_likelihood(nn.L1Loss()) is None
    z = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 5, (6, 3)).double()
    assert torch.allclose(likelihood.loss(z, y).mean(), loss(z, y))
    (auto,) = torch.autograd.grad(likelihood.loss(z, y).sum(), z)
    assert torch.allclose(auto, likelihood.gradient(z, y))
    z = z.detach()
    u = torch.randn(6, 3, dtype=torch.float64)
    columns = torch.stack([likelihood.factor_column(z, j) for j in range(3)])  # [3, 6, 3]
    inner = torch.einsum("jno,no->jn", columns, u)
    assert torch.allclose(torch.einsum("jno,jn->no", columns, inner), likelihood.fisher(z, u))
    rooted = likelihood.factor_transposed(z, u[None])[0]
    assert torch.allclose((rooted * rooted).sum(1), inner.square().sum(0))
    uniforms = torch.rand(50_000, 1, dtype=torch.float64)
    sampled = likelihood.sampled_gradient(torch.full((50_000, 1), 0.7).double(), uniforms)
    assert float(sampled.square().mean()) == pytest.approx(1.0, abs=0.05)
    assert abs(float(sampled.mean())) < 0.03


class FakeRun:
    """What the observers read of a run."""

    problem = types.SimpleNamespace(name="curves")
    history = (1, 2, 3)


def run_start(lab: Lab, record: Plugin) -> None:
    lab.emit("kfac_on_run_start", run=FakeRun())
    assert record.module.started == ["curves"]


def step(lab: Lab, record: Plugin) -> None:
    loss: Tensor = torch.tensor(2.0)
    lab.emit("kfac_on_step", run=FakeRun(), record=kl.StepRecord(step=1, loss=loss))
    assert record.module.losses[0] is loss  # kept unread


def swap(lab: Lab, record: Plugin) -> None:
    parts, before = {"damping": "tied"}, {"damping": "constant"}
    lab.emit("kfac_on_swap", run=FakeRun(), swap=Swap(7, parts, before))
    assert record.module.diary == ["after step 7: damping constant → tied"]


def run_error(lab: Lab, record: Plugin) -> None:
    lab.emit("kfac_on_run_error", run=FakeRun(), error=ValueError("no"))
    assert record.module.failures == ["curves: ValueError: no"]


def run_end(lab: Lab, record: Plugin) -> None:
    lab.emit("kfac_on_run_end", run=FakeRun())
    assert record.module.lengths == [3]


USES: dict[str, Callable[[Lab, Plugin], None]] = {
    "kfac_register_estimators": estimators,
    "kfac_register_blocks": blocks,
    "kfac_register_structures": structures,
    "kfac_register_models": models,
    "kfac_register_dampings": dampings,
    "kfac_register_momentums": momentums,
    "kfac_register_schedules": schedules,
    "kfac_register_batches": batches,
    "kfac_register_averages": averages,
    "kfac_register_collectives": collectives,
    "kfac_register_methods": methods,
    "kfac_register_problems": problems,
    "kfac_register_recipes": recipes,
    "kfac_register_views": views,
    "kfac_claim_layer": layers,
    "kfac_claim_likelihood": likelihoods,
    "kfac_on_run_start": run_start,
    "kfac_on_step": step,
    "kfac_on_swap": swap,
    "kfac_on_run_error": run_error,
    "kfac_on_run_end": run_end,
}


# --- the tests ------------------------------------------------------------------------------------


def test_every_hook_has_a_test() -> None:
    assert set(USES) == set(HOOKS)


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_the_example_is_complete_and_does_what_it_says(hook: str) -> None:
    lab, record = loaded(hook)
    assert record.status == "loaded" and record.why == ""
    if hook in FAMILIES.values():
        assert list(record.slots) == [slot for slot, each in FAMILIES.items() if each == hook]
    else:
        assert record.hooks == (hook,)
    USES[hook](lab, record)


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_the_example_imports_what_an_outsider_has(hook: str) -> None:
    tree = ast.parse(example(hook))
    imported = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in imported for alias in node.names}
    assert all(isinstance(node, ast.Import) for node in imported) and names <= ALLOWED
    assert max(len(line) for line in example(hook).splitlines()) <= 96


def test_a_docstring_without_an_example_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def bare(run: Any) -> None:
        """Says nothing."""

    monkeypatch.setitem(HOOKS, "kfac_on_run_end", bare)
    with pytest.raises(AssertionError, match="must hold one"):
        loaded("kfac_on_run_end")
