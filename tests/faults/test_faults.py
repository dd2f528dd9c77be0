"""Interrupts and memory errors at any line leave what was before, or what is after.

``make test`` takes every so-and-so-many line, ``make soak`` all of them, and prints the counts.
"""

import dataclasses
import functools
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kfac_lab as kl
from faults.harness import attacked, image, known
from kfac_lab.core import archive

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(48) % 4


class Dropping(nn.Dropout):
    """Dropout written out: torch's own takes milliseconds of Python under forward mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(x.shape) >= self.p) / (1 - self.p) if self.training else x


def seeded(seed: int) -> None:
    """`torch.manual_seed`, without the three tracebacks that it writes for devices to come."""
    torch.default_generator.manual_seed(seed)


def network(dropping: bool = True) -> nn.Module:
    """By autograd, with randomness of its own; or by the explicit plan."""
    seeded(0)
    middle = [nn.Tanh(), Dropping(0.1)] if dropping else [nn.Tanh()]
    return nn.Sequential(nn.Linear(6, 5), *middle, nn.Linear(5, 4))


def problem(dropping: bool = True) -> kl.Problem:
    model = network(dropping)
    return kl.Problem(model=model, likelihood="categorical", inputs=X, targets=Y, test=(X, Y))


PAPER = kl.Recipe.named("paper").replace(batch="constant(size=24)")


def recipe_of(method: str) -> kl.Recipe:
    if method == "kfac":
        return PAPER
    return kl.Recipe.of(f"method = {method}\nbatch = constant(size=24)\naverage = polyak")


@functools.cache
def base(method: str) -> kl.Run:
    run = kl.Run(problem(), recipe_of(method), seed=0, device="cpu").advance(2)
    run.swap(average="polyak(xi=0.9)")
    return run.advance(2)


def a_run(method: str) -> kl.Run:
    """One in the same state at each call."""
    return base(method).fork()


@functools.cache
def begun(recipe: kl.Recipe) -> kl.Run:
    run = kl.Run(problem(dropping=False), recipe, seed=0, device="cpu").advance(3)
    run.stepper._reads_are_free = False
    return run.advance(2)


def gated(recipe: kl.Recipe = PAPER) -> kl.Run:
    """One whose steps nobody looks at, as on an accelerator, in the same state at each call."""
    run = begun(recipe).fork()
    run.stepper._reads_are_free = False
    return run


def refreshing() -> kl.Run:
    """One whose next step reads what the steps before it were."""
    return gated(PAPER.replace(schedule="periodic(T1=2, T2=6, T3=6, burn_in=1)"))


def spoilt(free: bool) -> kl.Run:
    """One whose next batch shows that h has exploded, with a guard."""
    run = gated(PAPER.replace(damping="levenberg_marquardt(lam=1.0, guard=5.0)", average="polyak"))
    engine = run.stepper
    engine._reads_are_free = free
    before, delta = tuple(t.clone() for t in engine._theta), [50 + 0 * t for t in engine._theta]
    with torch.no_grad():
        torch._foreach_add_(engine._theta, delta)
    previous = engine.network.pack(delta)
    state = dataclasses.replace(engine.state_, previous=previous, before=before)
    engine.held = dataclasses.replace(engine.held, state=state)
    return run


@functools.cache
def good_so_far() -> kl.Run:
    def source(k: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (X * float("nan"), Y) if k == 4 else (X, Y)

    own = kl.Problem(model=network(dropping=False), likelihood="categorical", data=source)
    return kl.Run(own, PAPER, seed=0, device="cpu", bad_batches=1).advance(3)


def bad_batch() -> kl.Run:
    """One whose next batch is not finite, with a budget for that."""
    return good_so_far().fork()


def one_step(run: kl.Run) -> None:
    run.advance(1)


def optimizer() -> kl.KFAC:
    made = kl.KFAC(network(dropping=False), recipe=PAPER)
    for _ in range(2):
        made.step(X, Y)
    return made


def preconditioner() -> kl.Preconditioner:
    made = kl.Preconditioner(network(), recipe="paper")
    for _ in range(2):
        backward(made)
        made.step()
    backward(made)
    return made


def backward(made: kl.Preconditioner) -> None:
    made.model.zero_grad()
    seeded(7)  # of the dropout in the loop's own pass
    nn.functional.cross_entropy(made.model(X), Y).backward()


def go_on(made: Any) -> None:
    if isinstance(made, kl.KFAC):
        made.step(X, Y)
    else:
        backward(made)
        made.step()


SWAPS = {
    "momentum": {"momentum": "rescaled"},
    "structure": {"structure": "block_tridiagonal", "damping": "tied(lam=3.0)"},
    "estimator": {"estimator": "exact(fraction=0.5)", "schedule": "every_step"},
}


def operations() -> dict[str, tuple]:
    """Name → (make, operation, go on)."""
    found: dict[str, tuple] = {}
    for method in ("kfac", "nag", "adam", "muon", "soap"):
        make = lambda method=method: a_run(method)  # noqa: E731
        found[f"{method} step"] = (make, one_step, one_step)
        found[f"{method} rewind"] = (make, lambda run: run.rewind(1), one_step)
        found[f"{method} fork"] = (make, lambda run: run.fork(), one_step)
        found[f"{method} evaluate"] = (make, lambda run: run.evaluate("test", at="best"), one_step)
        swap = {"average": "none"} if method != "kfac" else SWAPS["momentum"]
        found[f"{method} swap"] = (make, lambda run, swap=swap: run.swap(**swap), one_step)
    for name in ("structure", "estimator"):
        parts = SWAPS[name]
        swapped = lambda run, parts=parts: run.swap(**parts)  # noqa: E731
        found[f"kfac swap of {name}"] = (lambda: a_run("kfac"), swapped, one_step)
    found["kfac step taken back"] = (lambda: spoilt(True), one_step, one_step)
    found["kfac step taken back, gated"] = (lambda: spoilt(False), one_step, one_step)
    found["kfac step, gated"] = (gated, one_step, one_step)
    found["kfac refresh, gated"] = (refreshing, one_step, one_step)
    found["kfac bad batch"] = (bad_batch, one_step, one_step)
    found["KFAC step"] = (optimizer, go_on, go_on)
    found["KFAC state_dict"] = (optimizer, lambda o: o.state_dict(), go_on)
    found["KFAC swap"] = (optimizer, lambda o: o.swap(**SWAPS["structure"]), go_on)
    found["Preconditioner step"] = (preconditioner, lambda p: p.step(), go_on)
    found["Preconditioner state_dict"] = (preconditioner, lambda p: p.state_dict(), go_on)
    return found


OPERATIONS = operations()
FAULTS = (KeyboardInterrupt, MemoryError)


def check(tally: Any, name: str, fault: type[BaseException]) -> None:
    print(f"{name}, {fault.__name__}: {tally}")
    assert not tally.torn, "\n".join(tally.torn)
    assert tally.lines and sum(tally.counts.values()) >= tally.lines


@pytest.mark.parametrize("name", OPERATIONS)
def test_some_lines(name: str) -> None:
    """Every 97th line, from another one for each fault; the second one, of one object in a row."""
    found = known(*OPERATIONS[name])
    for n, fault in enumerate(FAULTS):
        check(attacked(found, fault, every=97, first=7 + 48 * n, again=n == 1), name, fault)


@pytest.mark.soak
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_line(name: str, fault: type[BaseException]) -> None:
    check(attacked(known(*OPERATIONS[name]), fault), name, fault)


# ---- files and states ----------------------------------------------------------------------------


class Filed:
    """A run and the file it is saved in."""

    def __init__(self, folder: Path, method: str) -> None:
        self.path = Path(tempfile.mkdtemp(dir=folder)) / "run.pt"
        self.run = a_run(method)
        self.run.save(self.path)
        self.run.advance(1)

    def image(self) -> dict[str, Any]:
        saved = archive.load(self.path)  # whole, whatever happened
        saved["history"]["more"], times = None, saved["history"]["columns"].index("seconds")
        for row in saved["history"]["rows"]:
            row[times] = 0.0
        names = sorted(p.name for p in self.path.parent.iterdir())
        tensors = dict(saved["digests"])
        return {**image(self.run), "file": tensors, "rows": repr(saved["history"]), "names": names}


class Loading:
    """A problem made from objects, into which a file is loaded."""

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, problem()

    def load(self) -> kl.Run:
        return kl.Run.load(self.path, problem=self.problem, device="cpu")

    def image(self) -> dict[str, Any]:
        model = self.problem.model
        return {
            "model": {k: archive.digest(v) for k, v in model.state_dict().items()},
            "modes": [m.training for m in model.modules()],
            "names": sorted(p.name for p in self.path.parent.iterdir()),
        }


@functools.cache
def others(make: Any) -> bytes:
    """The state of one that went on, as a file's bytes."""
    other, file = make(), BytesIO()
    go_on(other)
    if isinstance(other, kl.KFAC):
        other.swap(**SWAPS["structure"])
    go_on(other)
    torch.save(other.state_dict(), file)
    return file.getvalue()


class Stating:
    """A KFAC or a Preconditioner, and the state of another that it loads."""

    def __init__(self, make: Any) -> None:
        self.made, self.state = make(), torch.load(BytesIO(others(make)), weights_only=False)

    def load(self) -> None:
        self.made.load_state_dict(self.state)

    def image(self) -> dict[str, Any]:
        return image(self.made)


def filed(folder: Path) -> dict[str, tuple]:
    nothing = lambda thing: None  # noqa: E731
    found: dict[str, tuple] = {}
    for method in ("kfac", "adam"):
        path = a_run(method).save(folder / f"{method}.pt")
        make = lambda method=method: Filed(folder / "own", method)  # noqa: E731
        found[f"{method} save"] = (make, lambda f: f.run.save(f.path), nothing)
        load = lambda path=path: Loading(path)  # noqa: E731
        found[f"{method} load"] = (load, Loading.load, nothing)
    for make in (optimizer, preconditioner):
        again = lambda make=make: Stating(make)  # noqa: E731
        found[f"{make.__name__} load_state_dict"] = (again, Stating.load, lambda s: go_on(s.made))
    return found


FILED = ["kfac save", "kfac load", "adam save", "adam load"]
FILED += ["optimizer load_state_dict", "preconditioner load_state_dict"]


def attack_files(name: str, folder: Path, every: int) -> None:
    (folder / "own").mkdir()
    look = lambda thing: thing.image()  # noqa: E731
    found = known(*filed(folder)[name], look)
    for n, fault in enumerate(FAULTS):
        start = 0 if every == 1 else 7 + n * (every // 2)
        check(attacked(found, fault, every, start, again=every > 1 and n == 1), name, fault)


@pytest.mark.parametrize("name", FILED)
def test_some_lines_of_files_and_states(name: str, tmp_path: Path) -> None:
    attack_files(name, tmp_path, 97)


@pytest.mark.soak
@pytest.mark.parametrize("name", FILED)
def test_every_line_of_files_and_states(name: str, tmp_path: Path) -> None:
    attack_files(name, tmp_path, 1)
