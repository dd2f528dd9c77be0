"""The hooks: everything by which a part gets into the lab. Three families, told by the prefix.

* **contribute**: ``kfac_register_…(register)`` is called once per plugin when it is loaded;
  ``register(name, component, summary="…", reference="…")`` puts a class into a slot.
* **claim**: ``kfac_claim_layer`` and ``kfac_claim_likelihood`` are asked at attach, each plugin on
  its own. Answer None for what is not yours, and go by exact type.
* **observe**: ``kfac_on_…`` fire on the training thread; they read and change nothing.

A plugin is a module (or an object) whose functions carry ``@kl.hookimpl``, named by an entry point
in the group ``kfac_lab``; an implementation takes those of the hook's arguments that it names.

Two more attributes are looked at, neither of them a hook and both optional. ``kfac_lab_api = 1``
says for which interface the plugin was written. ``kfac_lab_examples()`` yields pairs (module,
inputs) for ``kfac-lab check``, beside torch's own modules: a module that the plugin claims, in
float32, and the tensor, or tuple of tensors, that it is called with, cases first::

    def kfac_lab_examples():
        yield Mixed(5, 4), torch.randn(6, 5)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

__all__ = ["API_VERSION", "GROUP", "PROJECT", "hookimpl", "hookspec"]

PROJECT = "kfac_lab"
GROUP = "kfac_lab"  # of the entry points

#: what a plugin may say that it was written for: ``kfac_lab_api = 1`` (absent means current)
API_VERSION = 1

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Register = Callable[..., None]


@hookspec
def kfac_register_estimators(register: Register) -> None:
    """Contributes estimators: where the derivatives g come from (``core.protocols.Estimator``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Repeated:
        '''Several model samples of y per case: less noise in G, for one backward pass each.'''

        samples: int = dataclasses.field(default=2, metadata={"section": "4", "low": 1})
        fraction: float = dataclasses.field(default=0.125, metadata={"symbol": "τ1", "high": 1.0})

        def decay(self, k):
            return min(1 - 1 / k, 0.95)

        def cotangents(self, likelihood, outputs, targets, draw):
            for i in range(self.samples):
                gradient = likelihood.sampled_gradient(outputs, draw(f"targets {i}"))
                yield gradient / self.samples**0.5


    @kl.hookimpl
    def kfac_register_estimators(register):
        register("repeated", Repeated, reference="section 4")
    ```
    """


@hookspec
def kfac_register_blocks(register: Register) -> None:
    """Contributes blocks: the curvature of one layer and its damped inverse
    (``core.protocols.Block``).

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class ScalarInverse:
        scale: torch.Tensor  # 0-dim
        entries: int  # d_in·d_out

        def apply(self, matrix):
            return self.scale * matrix

        def dense(self):
            return self.scale * torch.eye(self.entries, device=self.scale.device)

        def factors(self):
            return None  # no product of two factors: it ends its chain


    @dataclasses.dataclass(frozen=True)
    class Scalar:
        '''One number per layer: the mean of the diagonal of Ā ⊗ G, damped by γ².'''

        def wants(self):
            return ("A.diagonal", "G.diagonal")

        def factorise(self, moments, memo):
            a, g = moments["A.diagonal"], moments["G.diagonal"]
            return (a.mean() * g.mean(), len(a) * len(g)), memo

        def damped(self, factored, memo, strength, previous):
            curvature, entries = factored
            return ScalarInverse(1 / (curvature + strength.gamma**2), entries)


    @kl.hookimpl
    def kfac_register_blocks(register):
        register("scalar", Scalar)
    ```
    """


@hookspec
def kfac_register_structures(register: Register) -> None:
    """Contributes structures: how the blocks make one preconditioner
    (``core.protocols.Structure``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class SharedInverse:
        inverses: tuple
        scale: float

        def apply(self, vector):
            parts = [p.apply(v) * self.scale for p, v in zip(self.inverses, vector)]
            return type(vector)(parts)


    @dataclasses.dataclass(frozen=True)
    class Independent:
        '''Every layer for itself, the whole scaled by a constant.'''

        scale: float = dataclasses.field(default=1.0, metadata={"low": 0.0})

        def pairs(self, chains):
            return ()  # no cross moments

        def factorise(self, layers, blocks, moments, memos):
            done = [block.factorise(moments[i], memos[i]) for i, block in enumerate(blocks)]
            return (tuple(blocks), tuple(f for f, _ in done)), tuple(memo for _, memo in done)

        def damped(self, factored, memos, strength, previous):
            parts = zip(*factored, memos)
            inverses = tuple(block.damped(f, memo, strength, None) for block, f, memo in parts)
            return SharedInverse(inverses, self.scale)


    @kl.hookimpl
    def kfac_register_structures(register):
        register("independent", Independent)
    ```
    """


@hookspec
def kfac_register_models(register: Register) -> None:
    """Contributes quadratic models: M on the span of a few vectors (``core.protocols.Model``).

    ```python
    import dataclasses

    import kfac_lab as kl
    from kfac_lab.core.traits import ModelTraits, forwarded


    @dataclasses.dataclass(frozen=True)
    class Cautious:
        '''Another model, its curvature made larger: shorter steps. Wrap, do not inherit.'''

        inner: str = "exact_fisher"
        factor: float = dataclasses.field(default=1.5, metadata={"low": 1.0})
        fraction: float = dataclasses.field(default=0.25, metadata={"symbol": "τ2", "high": 1.0})

        @property
        def traits(self):
            return forwarded(self.model(), ModelTraits)  # around "none" it has no curvature either

        def model(self):
            return kl.lab.component("model", self.inner)

        def restrict(self, evaluation, basis):
            restriction = self.model().restrict(evaluation, basis)
            return dataclasses.replace(restriction, curvature=self.factor * restriction.curvature)


    @kl.hookimpl
    def kfac_register_models(register):
        register("cautious", Cautious)
    ```
    """


@hookspec
def kfac_register_dampings(register: Register) -> None:
    """Contributes dampings: where λ and γ start and how they adapt (``core.protocols.Damping``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Cooling:
        '''λ falls by a constant factor whenever it is due; γ = √(λ+η).'''

        lam: float = dataclasses.field(
            default=150.0, metadata={"symbol": "λ", "section": "5.5", "low": 0.0, "log": True}
        )
        factor: float = dataclasses.field(default=0.95, metadata={"low": 0.0, "high": 1.0})

        def init(self, problem):
            return kl.Strength(self.lam, (self.lam + problem.l2) ** 0.5), {}

        def candidates(self, strength, due):
            return (strength,)

        def adapt(self, strength, memo, record):
            lam = strength.lam * self.factor
            return kl.Strength(lam, (lam + strength.eta) ** 0.5), memo


    @kl.hookimpl
    def kfac_register_dampings(register):
        register("cooling", Cooling, summary="λ falls steadily", reference="section 5.5")
    ```
    """


@hookspec
def kfac_register_momentums(register: Register) -> None:
    """Contributes momentums: the basis of a step and its coefficients
    (``core.protocols.Momentum``).

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Capped:
        '''α and μ from the quadratic model (section 6), but μ at most ``most``.'''

        most: float = dataclasses.field(default=0.9, metadata={"symbol": "μ", "low": 0.0})

        def basis(self, space, direction, previous, memo):
            return (direction,) if previous is None else (direction, previous)

        def choose(self, restriction, strength, step):
            free = restriction.minimiser(strength)
            if len(free) == 1:
                return free
            held = restriction.minimiser(strength, fixed={1: self.most})
            return torch.where(free[1] > self.most, held, free)  # no Python if: nothing is read


    @kl.hookimpl
    def kfac_register_momentums(register):
        register("capped", Capped)
    ```
    """


@hookspec
def kfac_register_schedules(register: Register) -> None:
    """Contributes schedules: when statistics, inverse, γ and λ are due
    (``core.protocols.Schedule``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Eager:
        '''A new inverse at every early step, then every ``period`` steps.'''

        until: int = dataclasses.field(default=20, metadata={"low": 1})
        period: int = dataclasses.field(default=20, metadata={"symbol": "T3", "low": 1})

        def due(self, step, memo, signals):
            now = step <= self.until or step % self.period == 0
            return kl.Due(stats=True, factors=now, inverse=now, lam=step % 5 == 0), memo


    @kl.hookimpl
    def kfac_register_schedules(register):
        register("eager", Eager)
    ```
    """


@hookspec
def kfac_register_batches(register: Register) -> None:
    """Contributes batches: how many cases a step draws (``core.protocols.Batch``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Doubling:
        '''``start`` cases, twice as many after every ``every`` steps, up to the whole set.'''

        start: int = dataclasses.field(default=250, metadata={"symbol": "m", "low": 1})
        every: int = dataclasses.field(default=100, metadata={"low": 1})

        def size(self, step, available):
            size = self.start * 2 ** min((step - 1) // self.every, 20)
            return size if available is None else min(size, available)


    @kl.hookimpl
    def kfac_register_batches(register):
        register("doubling", Doubling)
    ```
    """


@hookspec
def kfac_register_averages(register: Register) -> None:
    """Contributes averages of the iterates (``core.protocols.Average``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Tail:
        '''The plain mean of θ from step ``start`` on; before that θ itself.'''

        start: int = dataclasses.field(default=100, metadata={"section": "10.5", "low": 1})

        def init(self, theta):
            return {"count": 0, "mean": [t.detach().clone() for t in theta]}

        def update(self, memo, theta):
            count = memo["count"] + 1
            weight = 1 / max(1, count - self.start + 1)
            mean = [m + weight * (t - m) for m, t in zip(memo["mean"], theta)]
            return {"count": count, "mean": mean}

        def read(self, memo):
            return memo["mean"]


    @kl.hookimpl
    def kfac_register_averages(register):
        register("tail", Tail)
    ```
    """


@hookspec
def kfac_register_collectives(register: Register) -> None:
    """Contributes collectives: several processes as one (``core.protocols.Collective``).

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Replicated:
        '''Means over the processes of torch.distributed; every process inverts everything.'''

        @property
        def size(self):
            there = torch.distributed.is_available() and torch.distributed.is_initialized()
            return torch.distributed.get_world_size() if there else 1

        @property
        def rank(self):
            return torch.distributed.get_rank() if self.size > 1 else 0

        def mean_(self, tensors):
            for tensor in tensors if self.size > 1 else ():
                torch.distributed.all_reduce(tensor)
                tensor /= self.size

        def owner(self, keys, costs):
            return [self.rank] * len(keys)

        def broadcast_(self, tensors, owner):
            '''Nothing to send: each has built its own.'''


    @kl.hookimpl
    def kfac_register_collectives(register):
        register("replicated", Replicated)
    ```
    """


@hookspec
def kfac_register_methods(register: Register) -> None:
    """Contributes methods: whole steppers, which use a recipe's batch and average and nothing else
    of it. ``attach(problem, recipe, seed)`` makes a ``core.protocols.Stepper``.

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Descent:
        '''Plain gradient descent.'''

        lr: float = dataclasses.field(default=0.01, metadata={"low": 0.0, "log": True})

        def attach(self, problem, recipe, seed):
            return DescentStepper(problem, recipe["batch"], seed, self.lr)


    class DescentStepper:
        def __init__(self, problem, batch, seed, lr):
            self.problem, self.batch, self.seed, self.lr = problem, batch, seed, lr
            self.k = 0

        def step(self):
            self.k += 1
            size = self.batch.size(self.k, self.problem.available)
            drawn = self.problem.draw(self.k, size, self.seed)
            theta = list(self.problem.model.parameters())
            outputs = self.problem.model(drawn.inputs)
            loss = self.problem.likelihood.loss(outputs, drawn.targets).mean()
            with torch.no_grad():
                for parameter, gradient in zip(theta, torch.autograd.grad(loss, theta)):
                    parameter -= self.lr * (gradient + self.problem.l2 * parameter)
            return kl.StepRecord(step=self.k, loss=loss.detach(), batch=size, lr=self.lr)

        def state(self):
            return {"step": self.k, "model": self.problem.model.state_dict()}

        def load(self, state):
            self.k = state["step"]
            self.problem.model.load_state_dict(state["model"])


    @kl.hookimpl
    def kfac_register_methods(register):
        register("descent", Descent)
    ```
    """


@hookspec
def kfac_register_problems(register: Register) -> None:
    """Contributes problems: a function of (seed, device) that makes a Problem, initialised by the
    seed.

    ```python
    import torch

    import kfac_lab as kl


    def ring(seed=0, device="cpu"):
        '''Is a point of the plane inside the unit circle?'''
        generator = torch.Generator().manual_seed(seed)
        inputs = 3 * torch.rand(2000, 2, generator=generator) - 1.5
        targets = (inputs.square().sum(1, keepdim=True) < 1).float()
        layers = [torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)]
        model = torch.nn.Sequential(*layers)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        return kl.Problem(
            model=model.to(device),
            likelihood="bernoulli",
            inputs=inputs[:1500].to(device),
            targets=targets[:1500].to(device),
            test=(inputs[1500:].to(device), targets[1500:].to(device)),
            l2=1e-5,
            name="ring",
        )


    @kl.hookimpl
    def kfac_register_problems(register):
        register("ring", ring)
    ```
    """


@hookspec
def kfac_register_recipes(register: Register) -> None:
    """Contributes named recipes, each as text: one slot on a line, every slot that its method uses.
    Names mean this distribution's own components first.

    ```python
    import kfac_lab as kl

    STEADY = '''
    # γ tied to λ, re-scaling without momentum
    method = kfac
    estimator = sampled(fraction=0.25)
    block = {"Linear": "kronecker", "*": "diagonal"}
    structure = block_diagonal
    model = exact_fisher(fraction=0.5)
    damping = tied(lam=10)
    momentum = rescaled
    schedule = periodic(T1=5, T2=5, T3=5)
    batch = constant(size=500)
    average = polyak
    collective = solo
    '''


    @kl.hookimpl
    def kfac_register_recipes(register):
        register("steady", STEADY, summary="γ tied to λ, no momentum")
    ```
    """


@hookspec
def kfac_register_views(register: Register) -> None:
    """Contributes views of a run, for the panel: ``draw(axes, history)`` draws on a matplotlib
    Axes.

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Gain:
        '''How much of the predicted decrease each judged step got: ρ against the step.'''

        log: bool = False

        def draw(self, axes, history):
            axes.plot(history["step"], history["rho"], ".")
            axes.set_xlabel("step")
            axes.set_ylabel("ρ")
            axes.set_yscale("log" if self.log else "linear")


    @kl.hookimpl
    def kfac_register_views(register):
        register("gain", Gain)
    ```
    """


@hookspec
def kfac_claim_layer(module: Any, path: str) -> Any:
    """Claims a module: answers its Layer (``core.protocols.Layer``), or None for what is not yours.

    Asked at attach for every module with parameters, by exact type: a subclass may compute
    something else (``core.claims.computes_as`` tells those that do not). Outsiders go before
    built-ins; two outsiders that claim one module are an error naming both, unless the recipe says
    ``layers={"ClassName": "dist/name"}``. A module with several matrices is a tuple of Layers, each
    with the module that holds its parameters; a module that you know but cannot serve is
    ``core.layers.Declined("why, and what to do")``.

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    class Mixed(torch.nn.Module):
        '''y = x W with W stored [in, out], and no bias.'''

        def __init__(self, d_in, d_out):
            super().__init__()
            self.mix = torch.nn.Parameter(torch.randn(d_in, d_out) / d_in**0.5)

        def forward(self, x):
            return x @ self.mix


    @dataclasses.dataclass(frozen=True, eq=False)
    class MixedLayer:
        module: Mixed
        path: str
        names = ("mix",)

        @property
        def d_out(self):
            return self.module.mix.shape[1]

        @property
        def d_in(self):
            return self.module.mix.shape[0]

        def rows_in(self, inputs):
            return inputs.reshape(len(inputs), -1, self.d_in)

        def rows_out(self, gradients):
            return gradients.reshape(len(gradients), -1, self.d_out)

        def pack(self, tensors):
            return tensors[0].t().contiguous()

        def unpack(self, matrix):
            return (matrix.t(),)


    @kl.hookimpl
    def kfac_claim_layer(module, path):
        return MixedLayer(module, path) if type(module) is Mixed else None
    ```
    """


@hookspec
def kfac_claim_likelihood(loss: Any) -> Any:
    """Claims a loss: answers its Likelihood (``core.likelihood.Likelihood``), or None for what is
    not yours. Asked for whatever ``likelihood=`` is given that is no Likelihood; torch's own losses
    are claimed by the box, as the log-likelihoods that they are, unless an outsider does.

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    class WaitingTime(torch.nn.Module):
        '''Times y > 0 with rate exp(z): −log r(y|z) = exp(z) y − z, a mean over all outputs.'''

        def forward(self, outputs, targets):
            return (torch.exp(outputs) * targets - outputs).mean()


    @dataclasses.dataclass(frozen=True)
    class Exponential:
        '''exp(z) y is 1 on average with variance 1 whatever z is: F_R = B = I, over the outputs.'''

        def loss(self, outputs, targets):
            if targets.shape != outputs.shape:
                raise ValueError(f"one time for each of {outputs.shape}, not {targets.shape}")
            return (torch.exp(outputs) * targets - outputs).flatten(1).mean(1)

        def gradient(self, outputs, targets):
            return (torch.exp(outputs) * targets - 1) / outputs[0].numel()

        def sampled_gradient(self, outputs, uniforms):
            return (-torch.log(uniforms) - 1) / outputs[0].numel() ** 0.5  # E[ggᵀ] = F_R

        def factor_transposed(self, outputs, tangents):
            return tangents / outputs[0].numel() ** 0.5

        def fisher(self, outputs, tangents):
            return tangents / outputs[0].numel()

        def factor_columns(self, outputs):
            return outputs[0].numel()

        def factor_column(self, outputs, column):
            result = torch.zeros_like(outputs).flatten(1)
            result[:, column] = 1 / outputs[0].numel() ** 0.5
            return result.view_as(outputs)

        def error(self, outputs, targets):
            return (torch.exp(-outputs) - targets).square().flatten(1).sum(1)

        def mean(self, outputs):
            return torch.exp(-outputs)


    @kl.hookimpl
    def kfac_claim_likelihood(loss):
        return Exponential() if type(loss) is WaitingTime else None
    ```
    """


@hookspec
def kfac_on_run_start(run: Any) -> None:
    """A run is about to make its first step, or to go on after a pause.

    ```python
    import kfac_lab as kl

    started = []


    @kl.hookimpl
    def kfac_on_run_start(run):
        started.append(run.problem.name)
    ```
    """


@hookspec
def kfac_on_step(run: Any, record: Any) -> None:
    """A step was made and committed. The record's numbers are tensors that nobody has read: keep
    them and read them later, in one go, or training waits for the device at every step.

    ```python
    import kfac_lab as kl

    losses = []


    @kl.hookimpl
    def kfac_on_step(run, record):
        losses.append(record.loss)
    ```
    """


@hookspec
def kfac_on_swap(run: Any, swap: Any) -> None:
    """Parts were swapped at a step boundary: ``swap.step``, ``swap.parts`` and ``swap.before`` say
    which.

    ```python
    import kfac_lab as kl

    diary = []


    @kl.hookimpl
    def kfac_on_swap(run, swap):
        for slot, text in swap.parts.items():
            diary.append(f"after step {swap.step}: {slot} {swap.before[slot]} → {text}")
    ```
    """


@hookspec
def kfac_on_run_error(run: Any, error: BaseException) -> None:
    """A run stopped with an error, which is raised again after every observer was told.

    ```python
    import kfac_lab as kl

    failures = []


    @kl.hookimpl
    def kfac_on_run_error(run, error):
        failures.append(f"{run.problem.name}: {type(error).__name__}: {error}")
    ```
    """


@hookspec
def kfac_on_run_end(run: Any) -> None:
    """A run has made the steps that it was asked for, or was stopped.

    ```python
    import kfac_lab as kl

    lengths = []


    @kl.hookimpl
    def kfac_on_run_end(run):
        lengths.append(len(run.history))
    ```
    """
