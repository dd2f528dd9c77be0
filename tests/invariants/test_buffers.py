"""Buffers and normalisation: whatever the modes, a step sees the batch as the model itself does."""

from __future__ import annotations

import pytest
import torch
from devices import here
from torch import Tensor, nn

import kfac_lab as kl

pytestmark = pytest.mark.filterwarnings("ignore:a batch of")

CASES, CHUNK = 60, 25


def data() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(CASES, 4, generator=draw, dtype=torch.float64)
    return x, (x @ torch.randn(4, 3, generator=draw, dtype=torch.float64)).argmax(1)


class Normed(nn.Module):
    """Between two layers, and in a block of its own, so that it is no sequence to the engine."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6, affine=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.norm(self.one(x))))


def normed(mode: str) -> nn.Module:
    torch.manual_seed(0)
    model = Normed(track_running_stats=mode != "no statistics").double()
    if mode == "no statistics":  # of the batch, in eval mode too
        return model.eval()
    model.train()(data()[0])
    if mode == "module":  # it trains in a model that does not
        model.eval()
        model.norm.train()
    elif mode == "frozen":  # and the other way round
        model.norm.eval()
    return model


MODES = ("model", "module", "frozen", "no statistics")


def gradient(face: str, model: nn.Module) -> tuple[float, list[Tensor]]:
    """h and ∇h as a step sees them, of a batch in three chunks."""
    x, y = data()
    if face == "kfac":
        engine = kl.KFAC(model, recipe="small_batch")._engine
        engine.bind(x, y)
        engine.passes.function.chunk = CHUNK
        watched = [False] * len(engine.network.uses)
        seen, _ = engine.passes.evaluate(x, y, None, 1, CASES, None, watched)
        return float(seen.loss), engine.network.unpack(seen.gradient)
    problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)
    stepper = kl.Run(problem, kl.Recipe.named("adam"), device=here()).stepper
    stepper.chunk = CHUNK
    loss, _, found, _ = stepper._evaluate(x, y, 1)
    return float(loss), list(found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("face", ["kfac", "baseline"])
def test_chunks_go_together_where_a_module_normalises_over_them(face: str, mode: str) -> None:
    x, y = data()
    model, twin = normed(mode), normed(mode)
    wanted = nn.functional.cross_entropy(twin(x), y)
    wanted.backward()
    loss, found = gradient(face, model)
    assert loss == pytest.approx(float(wanted), rel=1e-12)
    for mine, p in zip(found, twin.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_what_normalises_goes_whole_and_what_does_not_in_chunks(mode: str) -> None:
    engine = kl.KFAC(normed(mode), recipe="small_batch")._engine
    engine.passes.function.chunk = CHUNK
    assert len(list(engine.passes.function.chunks(CASES))) == (3 if mode == "frozen" else 1)


class Counting(nn.Module):
    """Counts its calls: by a tensor in the place of the one before, and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("anew", torch.zeros(()))
        self.register_buffer("within", torch.zeros(()))
        self.register_buffer("last", torch.zeros(0), persistent=False)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.anew = self.anew + 1
        self.within += 1
        self.last = x  # of another shape each time: no state of the model
        z = self.layer(x)
        self.mean = 0.5 * self.mean + 0.5 * z.mean(0)  # with a graph
        return z


def counted(face: str, graphs: bool) -> nn.Module:
    """A model after five steps."""
    torch.manual_seed(0)
    model, (x, y) = Counting().double(), data()
    if face == "kfac":
        opt = kl.KFAC(model, recipe="small_batch", graphs=graphs)
        for _ in range(5):
            opt.step(x, y)
    elif face == "preconditioner":
        pre = kl.Preconditioner(model, graphs=graphs)
        for _ in range(5):
            nn.functional.cross_entropy(model(x), y).backward()
            model.mean = model.mean.detach()
            pre.step()
            pre.parameters[0].grad = pre.parameters[1].grad = None
    else:
        problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)
        recipe = kl.Recipe.named("adam").replace(batch=f"constant(size={CASES})")
        kl.Run(problem, recipe, device=here()).advance(5)
    return model


@pytest.mark.parametrize(
    ("face", "graphs"),
    [("kfac", False), ("kfac", True), ("preconditioner", False), ("preconditioner", True),
     ("baseline", False)],
)  # fmt: skip
def test_a_buffer_that_forward_replaces_is_counted_once_a_step(face: str, graphs: bool) -> None:
    model = counted(face, graphs)
    assert (float(model.anew), float(model.within)) == (5.0, 5.0)
    assert not model.mean.requires_grad and bool(model.mean.any())


class Late(nn.Module):
    """Makes buffers at its first call: one that counts on, and a cache that may be thrown away."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3, affine=False) if normed else nn.Identity()
        self.register_buffer("calls", None)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.calls is None:
            self.calls = x.new_zeros(())
        if self.cache is None:
            self.cache = x.new_ones(3)
        self.calls += 1
        return self.norm(self.layer(x) * self.cache)


@pytest.mark.parametrize("normed", [False, True], ids=["alone", "beside others"])
@pytest.mark.parametrize("face", ["kfac", "kfac, graphs", "preconditioner", "baseline"])
@pytest.mark.filterwarnings("ignore:.*its pass makes cache, a buffer")
def test_a_buffer_that_forward_makes_is_counted_once_a_step(face: str, normed: bool) -> None:
    """And one that the loop throws away between two steps is made again."""
    torch.manual_seed(0)
    model, (x, y) = Late(normed).double(), data()
    if face.startswith("kfac"):
        graphs = True if face.endswith("graphs") else "auto"
        opt = kl.KFAC(model, recipe="small_batch", graphs=graphs)
        step = lambda: opt.step(x, y)  # noqa: E731
    elif face == "preconditioner":
        pre = kl.Preconditioner(model)

        def step() -> None:
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            pre.step()
    else:
        problem = kl.Problem(model=model, likelihood="categorical", inputs=x, targets=y)
        recipe = kl.Recipe.named("adam").replace(batch=f"constant(size={CASES})")
        step = kl.Run(problem, recipe, device=here()).advance
    step()  # a pass of this one, or before it, has made them
    first = float(model.calls)
    for _ in range(4):
        model.cache = None
        step()
    assert float(model.calls) == first + 4
    assert torch.equal(model.cache, torch.ones(3).double())
    if normed:
        assert int(model.norm.num_batches_tracked) == 5
