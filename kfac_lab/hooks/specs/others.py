"""The hooks by which everything else is contributed: batches, averages, methods, problems, …"""

from __future__ import annotations

from kfac_lab.hooks.specs.markers import Register, hookspec


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

    import torch

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Tail:
        '''The plain mean of θ from step ``start`` on; before that θ itself.'''

        start: int = dataclasses.field(default=100, metadata={"section": "13", "low": 1})

        def init(self, theta):
            # A tensor: a count of Python's would be frozen where steps are replayed.
            count = torch.zeros((), dtype=torch.float64, device=theta[0].device)
            return {"count": count, "mean": [t.detach().clone() for t in theta]}

        def update(self, part_state, theta):
            count = part_state["count"] + 1
            weight = 1 / torch.clamp(count - self.start + 1, min=1)
            mean = [m + weight * (t - m) for m, t in zip(part_state["mean"], theta)]
            return {"count": count, "mean": mean}

        def read(self, part_state):
            return part_state["mean"]


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
    quadratic_model = exact_fisher(fraction=0.5)
    damping = tied(lam=10)
    momentum = rescaled
    schedule = periodic(T1=5, T2=5, T3=5)
    batch = constant(size=500)
    average = polyak
    collective = single_process
    '''


    @kl.hookimpl
    def kfac_register_recipes(register):
        register("steady", STEADY, summary="γ tied to λ, no momentum")
    ```
    """


@hookspec
def kfac_register_views(register: Register) -> None:
    """Contributes views of runs, for the panel: ``plot(runs, seen)`` answers with data.

    ``runs`` maps the label of each run to its history; the answer is a ``kl.plots.Plot``, which the
    page draws live and matplotlib draws in files. ``seen`` is what the class attribute ``wants``
    asks for (see ``kfac_lab.panel.views``), None where it asks for nothing. A view may also have
    ``draw(axes, history)`` and draw each run on a matplotlib Axes.

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Gain:
        '''How much of the predicted decrease each judged step got: ρ against the step.'''

        log: bool = False

        def plot(self, runs, seen):
            y = kl.plots.Axis("reduction ratio ρ", log=self.log)
            axes = kl.plots.columns(runs, "rho", y, shape="dots")
            return kl.plots.Plot("Gain", [axes], marks=kl.plots.marks(runs))


    @kl.hookimpl
    def kfac_register_views(register):
        register("gain", Gain)
    ```
    """
