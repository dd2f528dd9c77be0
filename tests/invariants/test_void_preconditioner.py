"""Where a read is not free: a Preconditioner's step that is skipped, and what it keeps of cases."""

import pytest
import torch

import kfac_lab as kl
from invariants.helpers import reads_cost, recipe_of, same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
VOID = 6
SCHEDULE = "periodic(T1=2, T2=8, T3=8, burn_in=1)"
STEADY = "sampled(limit=0.5)"


@pytest.fixture(autouse=True)
def _no_read_is_free(monkeypatch):
    reads_cost(monkeypatch)


def test_a_preconditioner_reads_the_flags_with_its_gradient():
    """Statistics that are not finite; the gradient is."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    pre = kl.Preconditioner(
        model, recipe=recipe_of("explicit", schedule=SCHEDULE, estimator=STEADY)
    )
    x, y = torch.randn(16, 6), torch.arange(16) % 4

    def backward():
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()

    for _ in range(VOID - 1):
        backward()
        pre.step()
    before = {k: v.clone() for k, v in pre._engine.store.current.items()}
    backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    pre._tap.see(([x * float("nan")], None))  # what the statistics are taken of
    record = pre.step()
    assert float(record.skipped) == 1 and pre.step_count == VOID
    assert all(map(torch.equal, gradients, [p.grad for p in model.parameters()]))
    same(before, dict(pre._engine.store.current))
    backward()
    with pytest.raises(kl.NumericalError, match=f"step {VOID} gave numbers"):
        pre.step()
    assert pre.step_count == VOID and pre._engine.state_.pending == ()
    assert all(map(torch.equal, gradients, [p.grad for p in model.parameters()]))
    pre.step()  # the same gradient, now
    assert pre.step_count == VOID + 1 and len(pre._engine.state_.pending) == 1
    pre.state_dict()
    assert pre._engine.state_.pending == ()


def test_a_preconditioner_forgets_the_pass_of_a_step_that_only_told():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))
    schedule = "periodic(T1=50, T2=50, T3=50, burn_in=1)"
    recipe = kl.Recipe.named("small_batch").replace(
        schedule=schedule, estimator="empirical(fraction=1.0, limit=0.5)"
    )
    pre = kl.Preconditioner(model, "bernoulli", recipe=recipe)
    told, batches = [], []
    for i in range(1, 9):
        x = torch.randn(64, 6)
        y = torch.sigmoid(x[:, :4])
        if i == 5:
            x[0] = 1e25
        model.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x), y, reduction="sum")
        (loss / 64).backward()
        try:
            batches.append(pre.step().batch)
        except kl.NumericalError:
            told.append(i)
    assert told and set(batches) == {64}
