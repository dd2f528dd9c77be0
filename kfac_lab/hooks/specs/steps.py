"""The hooks by which the parts of a K-FAC step are contributed, in the order of its verbs."""

from __future__ import annotations

from kfac_lab.hooks.specs.markers import Register, hookspec


@hookspec
def kfac_register_estimators(register: Register) -> None:
    """Contributes estimators: where the derivatives g come from (``core.protocols.Estimator``).

    ```python
    import dataclasses

    import kfac_lab as kl


    @dataclasses.dataclass(frozen=True)
    class Repeated:
        '''Several model samples of y per case: less noise in G, for one backward pass each.'''

        samples: int = dataclasses.field(default=2, metadata={"section": "5", "low": 1})
        fraction: float = dataclasses.field(default=0.125, metadata={"symbol": "τ1", "high": 1.0})

        def decay(self, k):
            return min(1 - 1 / k, 0.95)

        def cotangents(self, likelihood, outputs, targets, draw):
            for i in range(self.samples):
                gradient = likelihood.sampled_gradient(outputs, draw(f"targets {i}"))
                yield gradient / self.samples**0.5


    @kl.hookimpl
    def kfac_register_estimators(register):
        register("repeated", Repeated, reference="section 5")
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

        def factorise(self, moments, part_state):
            a, g = moments["A.diagonal"], moments["G.diagonal"]
            return (a.mean() * g.mean(), len(a) * len(g)), part_state

        def damped(self, factored, part_state, strength, previous):
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

        def factorise(self, layers, blocks, moments, part_states):
            done = [block.factorise(moments[i], part_states[i]) for i, block in enumerate(blocks)]
            return (tuple(blocks), tuple(f for f, _ in done)), tuple(after for _, after in done)

        def damped(self, factored, part_states, strength, previous):
            parts = zip(*factored, part_states)
            inverses = tuple(block.damped(f, own, strength, None) for block, f, own in parts)
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


    @dataclasses.dataclass(frozen=True)
    class Cautious:
        '''Another model, its curvature made larger: shorter steps. Wrap, do not inherit.'''

        inner: str = "exact_fisher"
        factor: float = dataclasses.field(default=1.5, metadata={"low": 1.0})
        fraction: float = dataclasses.field(default=0.25, metadata={"symbol": "τ2", "high": 1.0})

        @property
        def traits(self):
            # Around "none" it has no curvature, and λ no ground to adapt on.
            return kl.traits.forwarded(self.model(), kl.traits.ModelTraits)

        def model(self):
            return kl.lab.component("quadratic_model", self.inner)

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
            default=150.0, metadata={"symbol": "λ", "section": "6.5", "low": 0.0, "log": True}
        )
        factor: float = dataclasses.field(default=0.95, metadata={"low": 0.0, "high": 1.0})

        def init(self, problem):
            return kl.DampingStrength(self.lam, (self.lam + problem.l2) ** 0.5), {}

        def candidates(self, strength, due):
            return (strength,)

        def adapt(self, strength, part_state, record):
            lam = strength.lam * self.factor
            return kl.DampingStrength(lam, (lam + strength.eta) ** 0.5), part_state


    @kl.hookimpl
    def kfac_register_dampings(register):
        register("cooling", Cooling, summary="λ falls steadily", reference="section 6.5")
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
        '''α and μ from the quadratic model (section 7), but μ at most ``most``.'''

        most: float = dataclasses.field(default=0.9, metadata={"symbol": "μ", "low": 0.0})

        def basis(self, space, direction, previous, part_state):
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

        def due(self, step, part_state, signals):
            now = step <= self.until or step % self.period == 0
            return kl.Due(stats=True, factors=now, inverse=now, lam=step % 5 == 0), part_state


    @kl.hookimpl
    def kfac_register_schedules(register):
        register("eager", Eager)
    ```
    """
