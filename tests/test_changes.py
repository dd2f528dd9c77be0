"""A model that changes after its optimiser was made: told before anything moves; rebind()."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import kfac_lab as kl

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class General(nn.Module):
    """The same network on the general path."""

    def __init__(self):
        super().__init__()
        self.body = sequential()

    def forward(self, x):
        return self.body(x)


def sequential():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def freeze(body):
    body[0].requires_grad_(False)


def thaw(body):
    body[0].requires_grad_(True)


def replace_head(body):
    body[2] = nn.Linear(16, 3)


def wider(body):
    body[0] = nn.Linear(8, 20)
    body[2] = nn.Linear(20, 3)


def add(body):
    body.append(nn.Linear(3, 3))


def remove(body):
    del body[2]


def double(body):
    body.double()


def pruned(body):
    prune.l1_unstructured(body[0], "weight", 0.5)


CHANGES = {
    freeze: r"0\.weight was frozen",
    thaw: r"0\.weight was thawed",
    replace_head: r"2\.weight belongs to another Linear",
    wider: r"0\.weight has another shape, \(20, 8\) for \(16, 8\)",
    add: r"3\.weight was added",
    remove: r"2\.weight is no parameter",
    double: r"0\.weight became float64, from float32",
    pruned: r"0\.weight is no parameter",
}


def made(path, face, frozen=False, fallback="none"):
    """The model, its Sequential, and a function that makes a step."""
    model = sequential() if path == "sequential" else General()
    body = model if path == "sequential" else model.body
    if frozen:
        freeze(body)
    if face == "KFAC":
        recipe = kl.Recipe.named("robust").replace(fallback=fallback)
        optimiser = kl.KFAC(model, recipe=recipe)
        return body, optimiser, lambda: optimiser.step(X, Y)
    pre = kl.Preconditioner(model, recipe=kl.Recipe.named("small_batch").replace(fallback=fallback))

    def step():
        model.zero_grad()
        functional.cross_entropy(model(X.to(body[0].bias.dtype)), Y).backward()
        return pre.step()

    return body, pre, step


@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
@pytest.mark.parametrize("path", ["sequential", "general"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_a_change_is_told_before_anything_moves(change, path, face):
    body, optimiser, step = made(path, face, frozen=change is thaw)
    step()
    change(body)
    before = [p.detach().clone() for p in body.parameters()]
    held = optimiser._engine.held
    if change is remove:  # the loss itself cannot be had
        with pytest.raises((kl.RecipeError, RuntimeError, IndexError)):
            step()
        with pytest.raises(kl.RecipeError, match=CHANGES[change]):
            optimiser._engine.unchanged()
        return
    with pytest.raises(kl.RecipeError, match=CHANGES[change] + r".*rebind\(\)"):
        step()
    assert optimiser._engine.held is held
    assert all(torch.equal(a, b) for a, b in zip(before, body.parameters(), strict=True))


@pytest.mark.parametrize("path", ["sequential", "general"])
def test_what_is_the_same_is_no_change(path):
    body, _, step = made(path, "KFAC")
    step()
    body[0].weight.requires_grad_(True)
    body.load_state_dict(copy.deepcopy(body.state_dict()))
    body.load_state_dict(copy.deepcopy(body.state_dict()), assign=True)
    body[1].p = 3
    step()


@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
@pytest.mark.parametrize("path", ["sequential", "general"])
@pytest.mark.parametrize("change", [freeze, thaw, replace_head, wider], ids=lambda c: c.__name__)
def test_rebind_goes_on_with_the_moments_of_what_stayed(change, path, face):
    body, optimiser, step = made(path, face, frozen=change is thaw)
    for _ in range(4):
        step()
    change(body)
    kept = {}
    engine = optimiser._engine
    for i, use in enumerate(engine.network.uses):
        table = engine.store.table(spare=False)[i]
        kept[use.parameters] = {side: table[side].clone() for side in "AG"}
    assert optimiser.rebind() is optimiser
    assert optimiser.step_count == 4
    engine.bind(X, Y)
    found = 0
    for i, use in enumerate(engine.network.uses):
        for side in "AG":
            now = engine.store.table(spare=False)[i][side]
            old = kept.get(use.parameters, {}).get(side)
            if old is not None and old.shape == now.shape:
                assert torch.equal(now, old)
                found += 1
            else:
                assert not now.any()
    assert found >= (0 if change is wider else 2)
    before = {n: p.detach().clone() for n, p in body.named_parameters()}
    grads = {}
    for _ in range(3):
        step()
        grads = {n: p.grad for n, p in body.named_parameters()}
    for name, p in body.named_parameters():
        if face == "KFAC":
            assert torch.equal(p, before[name]) != p.requires_grad, name
        elif p.requires_grad:
            assert grads[name] is not None
    assert optimiser.step_count == 7
    trained = {r.parameter for r in optimiser.coverage() if r.kind != "frozen"}
    prefix = "" if path == "sequential" else "body."
    assert trained == {prefix + n for n, p in body.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
@pytest.mark.parametrize("path", ["sequential", "general"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_every_change_is_followed_by_rebind_or_refused_by_name(change, path, face):
    """After rebind() every trained parameter is trained; a pruned layer needs a fallback."""
    fallback = "diagonal" if change is pruned else "none"
    body, optimiser, step = made(path, face, frozen=change is thaw, fallback=fallback)
    for _ in range(3):
        step()
    moments = [m.clone() for m in optimiser._engine.store.current.values()]
    change(body)
    optimiser.rebind()
    prefix = "" if path == "sequential" else "body."
    trained = {prefix + n: p for n, p in body.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    dtype = body[0].bias.dtype
    if face == "KFAC":
        for _ in range(3):
            optimiser.step(X.to(dtype), Y)
        assert not [n for n, p in trained.items() if torch.equal(p, before[n])]
    else:
        for _ in range(3):
            step()
        plain = torch.autograd.grad(
            functional.cross_entropy(optimiser.model(X.to(dtype)), Y), list(trained.values())
        )
        for (name, p), g in zip(trained.items(), plain, strict=True):
            assert not torch.equal(p.grad, g), name
    assert optimiser.step_count == 6
    assert {r.parameter for r in optimiser.coverage() if r.kind != "frozen"} == set(trained)
    assert all(m.dtype == dtype for m in optimiser._engine.store.current.values())
    assert len(moments)


@pytest.mark.parametrize("face", ["KFAC", "Preconditioner"])
@pytest.mark.parametrize("path", ["sequential", "general"])
def test_what_rebind_cannot_follow_is_named(path, face):
    body, optimiser, step = made(path, face)
    step()
    held = optimiser._engine.held
    pruned(body)
    with pytest.raises(kl.CoverageError, match=r"no layer claims 2 parameters: .*0\.weight_orig"):
        optimiser.rebind()
    assert optimiser._engine.held is held
    prune.remove(body[0], "weight")  # what it was: another order of its parameters is no change
    step()


def test_rebind_that_cannot_be_changes_nothing():
    body, optimiser, step = made("sequential", "KFAC")
    step()
    body.append(nn.Bilinear(3, 3, 3))
    engine = optimiser._engine
    held, network = engine.held, engine.network
    with pytest.raises(kl.CoverageError, match="Bilinear"):
        optimiser.rebind()
    assert engine.held is held and engine.network is network
    del body[3]
    step()


def test_a_thawed_model_trains_as_one_made_so():
    """After rebind a fine-tuned model learns with all its layers."""
    body, optimiser, step = made("sequential", "KFAC", frozen=True)
    for _ in range(10):
        step()
    thaw(body)
    optimiser.rebind()
    losses = [float(step().loss) for _ in range(25)]
    assert losses[-1] < 0.2 * losses[0]


# --- copies and two of them -----------------------------------------------------------------------


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copied_preconditioner_says_what_it_is(way):
    model = sequential()
    pre = kl.Preconditioner(model)
    other = way(pre)
    with pytest.raises(kl.RecipeError, match="is a copy or was unpickled, and belongs to no model"):
        other.step()
    with pytest.raises(kl.RecipeError, match="belongs to no model"):
        other.coverage()
    functional.cross_entropy(model(X), Y).backward()
    pre.step()


def test_two_optimisers_in_turn_are_told_once():
    model = sequential()
    one, two = kl.KFAC(model), kl.KFAC(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            one.step(X, Y)
            two.step(X, Y)
    told = [str(w.message) for w in said if "in turn" in str(w.message)]
    assert len(told) == 1 and "step the same Sequential" in told[0]


def test_another_optimiser_after_the_first_is_nothing_to_tell():
    model = sequential()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            optimiser = kl.KFAC(model)
            optimiser.step(X, Y)
            optimiser.step(X, Y)


# --- compiled, wrapped and several processes ------------------------------------------------------


def test_a_compiled_model_is_trained_as_it_is():
    plain, model = sequential(), sequential()
    compiled = torch.compile(model, backend="eager")
    one, two = kl.KFAC(plain), kl.KFAC(compiled)
    for _ in range(3):
        one.step(X, Y)
        two.step(X, Y)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True)
    )
    assert two.model is model


def test_a_preconditioner_sees_what_a_compiled_model_is_given():
    grads = []
    for compile in (False, True):
        model = sequential()
        called = torch.compile(model, backend="eager") if compile else model
        if compile:
            functional.cross_entropy(called(X), Y).backward()  # compiled before
            model.zero_grad()
        pre = kl.Preconditioner(called)
        functional.cross_entropy(called(X), Y).backward()
        pre.step()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_hook_that_a_compiled_model_leaves_out_is_told():
    model = sequential()
    compiled = torch.compile(model, backend="eager")
    functional.cross_entropy(compiled(X), Y).backward()
    pre = kl.Preconditioner(model)
    functional.cross_entropy(compiled(X), Y).backward()
    with pytest.raises(kl.RecipeError, match=r"Preconditioner\(torch\.compile\(model\)\)"):
        pre.step()


@pytest.mark.parametrize("face", [kl.KFAC, kl.Preconditioner])
def test_processes_without_a_collective_are_refused(face, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(kl.RecipeError, match=r"one of 2 processes.*collective='distributed'"):
        face(sequential())


def test_a_state_made_under_ddp_loads_into_the_bare_model(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(sequential())
        one = kl.KFAC(wrapped)
        pre = kl.Preconditioner(wrapped)
        functional.cross_entropy(wrapped(X), Y).backward()
        pre.step()
        pre.remove()
        for _ in range(3):
            one.step(X, Y)
        states = one.state_dict(), pre.state_dict()
    finally:
        torch.distributed.destroy_process_group()
    model = sequential()
    two = kl.KFAC(model)
    two.load_state_dict(states[0])
    kl.Preconditioner(model).load_state_dict(states[1])
    for optimiser in (one, two):
        optimiser.step(X, Y)
    bare = wrapped.module
    assert all(
        torch.equal(a, b) for a, b in zip(bare.parameters(), model.parameters(), strict=True)
    )


# --- autocast and accumulation --------------------------------------------------------------------


def test_autocast_around_the_loop():
    """Statistics and inverses are made in the model's precision."""
    model = sequential()
    optimiser = kl.KFAC(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [float(optimiser.step(X, Y).loss) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]
    pre = kl.Preconditioner(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        functional.cross_entropy(model(X), Y).backward()
        pre.step()
    assert all(v.dtype == torch.float32 for v in pre._engine.store.current.values())


def test_checkpointed_activations_have_the_same_rows():
    class Checkpointed(General):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)

    found = []
    for kind in (General, Checkpointed):
        torch.manual_seed(0)
        model = kind()
        recipe = kl.Recipe.named("robust").replace(quadratic_model="approximate_fisher")
        optimiser = kl.KFAC(model, recipe=recipe)
        for _ in range(2):
            optimiser.step(X, Y)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])
