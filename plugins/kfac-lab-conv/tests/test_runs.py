"""Runs of convolutional networks: on digits, saved and loaded, and on a device without values."""

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl
from kfac_lab.core import linalg
from kfac_lab.core.dispatch import DispatchMode
from kfac_lab.core.program.calls import tensors
from kfac_lab.engine import attach

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
REDUCE = {"Conv2d": "kronecker_reduce", "*": "kronecker"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def digits():
    found = kl.Run("digits_classifier", "adam", device=here()).problem
    return kl.Problem(
        model=network(),
        likelihood="categorical",
        inputs=found.inputs[:600].unflatten(1, (8, 8)),
        targets=found.targets[:600],
        l2=1e-5,
    )


def same(a, b):
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "block"),
    [
        pytest.param("robust", "kronecker", id="robust-expand"),
        pytest.param("small_batch", REDUCE, id="small_batch-reduce"),
        pytest.param("robust", REDUCE, id="robust-reduce", marks=pytest.mark.soak),
        pytest.param("small_batch", "kronecker", id="small_batch-expand", marks=pytest.mark.soak),
    ],
)
def test_it_trains_and_goes_on_bit_for_bit(name, block, tmp_path):
    recipe = kl.Recipe.named(name).replace(block=block, batch="constant(size=300)")
    if name == "small_batch":
        recipe = recipe.replace(momentum="norm_clip(lr=0.1, kappa=0.01)")
    run = kl.Run(digits(), recipe, seed=0, device=here())
    assert {row.claimed_by for row in run.coverage() if row.kind == "Convolution"} == {
        "kfac-lab-conv/conv"
    }
    first = run.evaluate("train", at="theta").loss
    run.advance(7)
    run.save(tmp_path / "a.pt")
    run.advance(23)
    assert run.evaluate("train", at="theta").loss < first / 2
    other = kl.Run.load(tmp_path / "a.pt", problem=digits())
    other.advance(23)
    same(run.problem.model, other.problem.model)
    assert list(run.history["loss"]) == list(other.history["loss"])


def test_the_optimiser_s_own_loop():
    problem = digits()
    opt = kl.KFAC(problem.model, likelihood="categorical", seed=0)
    records = [opt.step(problem.inputs, problem.targets) for _ in range(5)]
    assert float(records[-1].loss) < 0.7 * float(records[0].loss)


# --- no values, no reads --------------------------------------------------------------------------


class OneDevice(DispatchMode):
    """Fails where an operation sees two devices; an upload of batch indices is no such thing."""

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.device.type for t in tensors((args, kwargs))}
        made = {t.device.type for t in tensors(out)}
        upload = func._schema.name == "aten::_to_copy" and given == {"cpu"} and made == {"meta"}
        assert upload or len(given | made) < 2, f"{func} saw {given} and made {made}"
        self.operations += "meta" in made
        return out


def canned(tensors):
    """Every flag is true, every status good."""
    return [1.0 if not t.dtype.is_floating_point or n else 0.0 for n, t in enumerate(tensors)]


class Outside(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("block", "generic"),
    [
        pytest.param("kronecker", True, id="expand-True"),
        pytest.param(REDUCE, False, id="reduce-False"),
        pytest.param("kronecker", False, id="expand-False", marks=pytest.mark.soak),
        pytest.param(REDUCE, True, id="reduce-True", marks=pytest.mark.soak),
    ],
)
def test_whole_steps_on_meta(block, generic, monkeypatch):
    monkeypatch.setattr(linalg.reading, "transfer", canned)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(4, 4, 2, padding="same", padding_mode="circular"),
        nn.Tanh(),
        nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(2 * 100, 3),
    )
    model = (Outside(model) if generic else model).to("meta")
    problem = kl.Problem(
        model=model,
        likelihood="categorical",
        inputs=torch.randn(24, 2, 8, 8, device="meta"),
        targets=torch.zeros(24, dtype=torch.long, device="meta"),
    )
    recipe = kl.Recipe(
        block=block,
        estimator="sampled(fraction=0.5)",
        quadratic_model="exact_fisher(fraction=0.5)",
        schedule="periodic(T1=2, T2=2, T3=2, burn_in=1)",
        batch="constant(size=16)",
    )
    engine = attach(problem, recipe, 0)
    with OneDevice() as mode:
        records = [engine.step() for _ in range(4)]
    assert mode.operations > 400
    assert all(r.loss.device.type == r.alpha.device.type == "meta" for r in records)
