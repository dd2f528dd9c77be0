"""EKFAC in whole runs, through the entry point: the recipe, swaps, files, the meta device."""

import pytest
import torch
from devices import here
from kfac_lab_ekfac import Ekfac
from torch import nn

import kfac_lab as kl
from kfac_lab.core import linalg

pytestmark = pytest.mark.filterwarnings("ignore:a batch of:UserWarning")


def digits(**parts):
    recipe = kl.Recipe.of("ekfac").replace(batch="constant(size=200)", **parts)
    return kl.Run("digits", recipe=recipe, seed=0, device=here())


def part_states(run):
    return run.stepper.state_.block_states


def test_the_entry_point_registers_the_block_and_the_recipe():
    assert kl.lab.entry("block", "ekfac").owner == "kfac-lab-ekfac"
    assert kl.Recipe.of("ekfac")["block"] == Ekfac()
    assert kl.Recipe.of("paper").replace(block="ekfac(rebase='restart')")["block"].rebase == (
        "restart"
    )
    with pytest.raises(kl.RecipeError, match="rebase='keep'"):
        kl.Recipe.of("paper").replace(block="ekfac(rebase='keep')")


# --- one run against its definition ---------------------------------------------------------------


def tiny(positions=False):
    """A float64 network of two layers and its problem; ``positions`` gives each case three."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = torch.randn(*(9, 3, 4) if positions else (9, 4), dtype=torch.float64)
    y = torch.randn(*(9, 3, 2) if positions else (9, 2), dtype=torch.float64)
    return kl.Problem(model=model, likelihood="gaussian", inputs=x, targets=y)


def layer_fishers(problem):
    """E[J_iᵀ J_i] of each layer by autograd, one output of one case at a time.

    The Gaussian's loss is ½‖y − z‖², whose F_R is I (section 2.2).
    """
    model = problem.model
    layers = [m for m in model if isinstance(m, nn.Linear)]
    found = [0.0] * len(layers)
    for x in problem.inputs:
        for z in model(x[None]).reshape(-1):
            for i, layer in enumerate(layers):
                w, b = torch.autograd.grad(z, [layer.weight, layer.bias], retain_graph=True)
                vector = torch.cat([w, b[:, None]], 1).t().reshape(-1)
                found[i] = found[i] + torch.outer(vector, vector) / len(problem.inputs)
    return found


@pytest.mark.parametrize("positions", [False, True])
def test_two_steps_are_those_of_the_definition(positions):
    """Step 1 opens the scales at d aᵀ; step 2 averages them with E[(Q_Gᵀ DW Q_A)²], ε = ½."""
    problem = tiny(positions)
    recipe = kl.Recipe.of("ekfac").replace(
        estimator="exact(fraction=1.0)",
        schedule="periodic(T1=5, T2=20, T3=20, burn_in=1, T_scale=1)",
        damping="tied(lam=0.3)",
        batch="constant(size=9)",
    )
    run = kl.Run(problem, recipe, device=here()).advance(1)
    first = part_states(run)
    fishers = layer_fishers(problem)  # at θ after step 1, where step 2 looks
    run.advance(1)
    gamma = float(run.history["gamma"][-1])
    for before, after, F, inverse in zip(
        first, part_states(run), fishers, run.stepper.state_.inverse.inverses, strict=True
    ):
        U = torch.kron(before["A.basis"], before["G.basis"])
        diagonal = (U.t() @ F @ U).diagonal()
        expected = 0.5 * before["scales"].t().reshape(-1) + 0.5 * diagonal
        torch.testing.assert_close(after["scales"].t().reshape(-1), expected)
        block = (U * expected) @ U.t()
        shifted = block + gamma**2 * torch.eye(len(U), dtype=torch.float64)
        torch.testing.assert_close(inverse.dense(), torch.linalg.inv(shifted))


# --- what changes when ----------------------------------------------------------------------------


def test_scales_change_at_every_step_and_bases_when_the_factors_are_due():
    run = digits(schedule="periodic(T1=5, T2=4, T3=4, burn_in=1, T_scale=1)").advance(1)
    changed = {"A.basis": [], "scales": [], "weights": []}
    for step in range(2, 10):
        old = part_states(run)[0], run.stepper.state_.inverse.inverses[0].weights
        run.advance(1)
        new = part_states(run)[0], run.stepper.state_.inverse.inverses[0].weights
        for key in ("A.basis", "scales"):
            if not torch.equal(old[0][key], new[0][key]):
                changed[key].append(step)
        if not torch.equal(old[1], new[1]):
            changed["weights"].append(step)
    assert changed == {
        "A.basis": [4, 8],
        "scales": list(range(2, 10)),
        "weights": list(range(2, 10)),
    }


def test_without_t_scale_the_inverse_waits_for_the_refresh():
    run = digits(schedule="periodic(T1=5, T2=4, T3=4, burn_in=1)").advance(1)
    weights = run.stepper.state_.inverse.inverses[0].weights
    run.advance(2)
    assert torch.equal(run.stepper.state_.inverse.inverses[0].weights, weights)
    run.advance(1)
    assert not torch.equal(run.stepper.state_.inverse.inverses[0].weights, weights)


# --- training -------------------------------------------------------------------------------------


def test_it_trains_as_well_as_kronecker():
    """On the digits: far below the start, and within a tenth of ``kronecker``'s error."""
    start = float(digits().evaluate("train"))
    kronecker, *errors = (
        float(digits(block=block).advance(60).evaluate("train", at="best"))
        for block in ("kronecker", "ekfac(rebase='project')", "ekfac(rebase='restart')")
    )
    for error in errors:
        assert error < 0.6 * start
        assert error < 1.1 * kronecker


@pytest.mark.parametrize("model", ["approximate_fisher", "exact_fisher"])
def test_classes_and_both_models(model):
    recipe = kl.Recipe.of("ekfac").replace(
        model=model, batch="constant(size=300)", damping="tied(lam=3.0)"
    )
    run = kl.Run("digits_classifier", recipe=recipe, device=here()).advance(40)
    assert run.history["loss"][-1] < 0.3 * run.history["loss"][0]


def test_under_a_tridiagonal_structure_it_ends_its_chain():
    run = digits(structure="block_tridiagonal").advance(3)
    alone = digits().advance(3)
    assert run.stepper.state_.inverse.links == ()
    for a, b in zip(run.problem.model.parameters(), alone.problem.model.parameters(), strict=True):
        assert torch.equal(a, b)


# --- swaps and files ------------------------------------------------------------------------------


def test_swaps_to_and_from_it_in_mid_run():
    run = kl.Run(
        "digits", recipe=kl.Recipe.of("paper").replace(batch="constant(size=200)"), device=here()
    ).advance(12)
    lam = float(run.stepper.state_.strength.lam)
    run.swap(block="ekfac", schedule="periodic(T1=5, T2=20, T3=20, T_scale=1)")
    assert part_states(run) == ({},) * 6 and float(run.stepper.state_.strength.lam) == lam
    kept = {key: value.clone() for key, value in run.stepper.store.current.items()}
    run.advance(1)
    assert all(key in run.stepper.store.current for key in kept)
    for i, part_state in enumerate(
        part_states(run)
    ):  # open at Kronecker's own, from the moments kept
        A, G = (run.stepper.store.current[name, i, i] for name in "AG")
        torch.testing.assert_close(
            part_state["scales"].double().sum(),
            A.double().trace() * G.double().trace(),
            rtol=1e-3,
            atol=0,
        )
    run.advance(10)
    assert [type(i).__name__ for i in run.stepper.state_.inverse.inverses] == ["EkfacInverse"] * 6
    middle = float(run.history["loss"][-1])
    run.swap(block={"0": "ekfac", "*": "kronecker"}).advance(3)
    kinds = [type(i).__name__ for i in run.stepper.state_.inverse.inverses]
    assert kinds == ["EkfacInverse"] + ["KroneckerInverse"] * 5
    assert "scales" in part_states(run)[0] and part_states(run)[1] == {}
    run.swap(block="kronecker").advance(10)
    losses = run.history["loss"]
    assert part_states(run) == ({},) * 6
    assert losses[-1] < middle < losses[11] and losses[-1] < 0.9 * losses[0]
    assert [m.step for m in run.history.marks] == [12, 23, 26]


def test_a_saved_run_goes_on_bit_for_bit(tmp_path):
    run = digits(schedule="periodic(T1=5, T2=6, T3=6, burn_in=2, T_scale=1)").advance(9)
    path = run.save(tmp_path / "run.pt")
    run.advance(8)
    other = kl.Run.load(path, device=here()).advance(8)
    for a, b in zip(run.problem.model.parameters(), other.problem.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(part_states(run), part_states(other), strict=True):
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert all(list(run.history[c]) == list(other.history[c]) for c in ("loss", "lam"))


def test_rewind_replays_it():
    run = digits().advance(8)
    theta = [p.detach().clone() for p in run.problem.model.parameters()]
    run.advance(4).rewind(8)
    assert all(map(torch.equal, theta, run.problem.model.parameters()))


def test_kfac_and_its_state_dict():
    def made():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        return kl.KFAC(model, "categorical", recipe="ekfac")

    x, y = torch.randn(30, 5), torch.arange(30) % 3
    one, other = made(), made()
    for _ in range(4):
        one.step(x, y)
    other.load_state_dict(one.state_dict())
    for opt in (one, other):
        for _ in range(3):
            opt.step(x, y)
    assert all(map(torch.equal, one.model.parameters(), other.model.parameters()))


# --- no device is assumed -------------------------------------------------------------------------


def test_whole_steps_on_the_meta_device(monkeypatch):
    """No value exists there, so none can be read but through ``linalg.host``, which is canned."""
    counts = []

    def canned(tensors):
        assert all(t.device.type == "meta" and t.dim() == 0 for t in tensors)
        counts.append(len(tensors))
        return [1.0 if not t.dtype.is_floating_point or n else 0.0 for n, t in enumerate(tensors)]

    monkeypatch.setattr(linalg.reading, "transfer", canned)
    problem = tiny(positions=True)
    problem.model.to("meta")
    problem.inputs, problem.targets = problem.inputs.to("meta"), problem.targets.to("meta")
    recipe = kl.Recipe.of("ekfac").replace(
        schedule="periodic(T1=2, T2=4, T3=4, T_scale=1)", batch="constant(size=8)"
    )
    stepper = recipe["method"].attach(problem, recipe, 0)
    for _ in range(6):
        stepper.step()
    assert len(counts) == 6  # one read a step, since each builds an inverse
    assert all(m["scales"].device.type == "meta" for m in stepper.state_.block_states)
