"""Plugins that load and break a law of the kit: each a sound module with one line wrong."""

from __future__ import annotations

from hooks.broken_loaded import DAMPING, HEAD, REGISTER

BLOCK = """
@dataclass(frozen=True)
class Inverse:
    scale: torch.Tensor

    def apply(self, matrix):
        return matrix * self.scale

    def dense(self):
        return torch.diag(self.scale.t().reshape(-1))

    def factors(self):
        return None


@dataclass(frozen=True)
class Mine:
    def wants(self):
        return ("A.diagonal", "G.diagonal")

    def factorise(self, moments, part_state):
        return torch.outer(moments["G.diagonal"], moments["A.diagonal"]), part_state

    def damped(self, factored, part_state, strength, previous):
        return Inverse(1.0 / (factored + (strength.gamma**2).to(factored.dtype)))


@kl.hookimpl
def kfac_register_blocks(register):
    register("mine", Mine)
"""
MOMENTUM = """
@dataclass(frozen=True)
class Mine:
    def basis(self, space, direction, previous, part_state):
        return (direction,)

    def choose(self, restriction, strength, step):
        return restriction.minimiser(strength)


@kl.hookimpl
def kfac_register_momentums(register):
    register("mine", Mine)
"""
SCHEDULE = """
@dataclass(frozen=True)
class Mine:
    def due(self, step, part_state, signals):
        return kl.Due(True, step % 5 == 0, step % 5 == 0, step % 5 == 0, True), part_state


@kl.hookimpl
def kfac_register_schedules(register):
    register("mine", Mine)
"""
ESTIMATOR = """
@dataclass(frozen=True)
class Mine:
    fraction: float = 0.5

    def decay(self, k):
        return min(1 - 1 / k, 0.95)

    def cotangents(self, likelihood, outputs, targets, draw):
        yield likelihood.sampled_gradient(outputs, draw("targets"))


@kl.hookimpl
def kfac_register_estimators(register):
    register("mine", Mine)
"""
LAMBDA = "        return strength, part_state\n"  # the last line of adapt
FOLLOWS = """
        grow = record.rho < 0.25
        lam = torch.where(grow, strength.lam * 2, strength.lam / 2)
        return strength._replace(lam=lam), part_state
"""


def but(source: str, old: str, new: str) -> str:
    """The sound module with one line wrong."""
    assert source.count(old) == 1, (old, source)
    return HEAD + source.replace(old, new)


#: what is wrong → the slot, the law that says so, and the module
JUDGED: dict[str, tuple[str, str, str]] = {
    "wrong shape": (
        "block",
        "shapes",
        but(BLOCK, "return matrix * self.scale", "return (matrix * self.scale).sum(1)"),
    ),
    "not symmetric": (
        "block",
        "symmetric",
        but(
            BLOCK,
            "return matrix * self.scale",
            "return matrix * self.scale + 0.1 * matrix.roll(1, 1)",
        ),
    ),
    "not positive": ("block", "positive_definite", but(BLOCK, "Inverse(1.0 /", "Inverse(-1.0 /")),
    "undamped": (
        "block",
        "finite",
        but(BLOCK, "(factored + (strength.gamma**2).to(factored.dtype))", "factored"),
    ),
    "damped the wrong way": (
        "block",
        "falls_with_gamma",
        but(BLOCK, "(strength.gamma**2)", "(1 / strength.gamma**2)"),
    ),
    "keeps what the store reuses": (
        "block",
        "keeps_no_moments",
        but(
            BLOCK,
            'return torch.outer(moments["G.diagonal"], moments["A.diagonal"]), part_state',
            'return moments["A.diagonal"].expand(len(moments["G.diagonal"]), -1), part_state',
        ),
    ),
    "writes into the moments": (
        "block",
        "inputs_not_written",
        but(BLOCK, 'moments["A.diagonal"])', 'moments["A.diagonal"].add_(1))'),
    ),
    "wrong device": (
        "block",
        "device_follows",
        but(
            BLOCK,
            "Inverse(1.0 / (factored",
            "Inverse(torch.ones(factored.shape, dtype=factored.dtype) / (factored",
        ),
    ),
    "wrong dtype": (
        "block",
        "dtype_follows",
        but(BLOCK, "Inverse(1.0 / (factored", "Inverse(1.0 / (factored.double()"),
    ),
    "not deterministic": (
        "estimator",
        "deterministic",
        but(ESTIMATOR, 'draw("targets")', "torch.rand(outputs.shape, dtype=outputs.dtype)"),
    ),
    "reads on the host": (
        "damping",
        "no_host_read",
        but(DAMPING + REGISTER, LAMBDA, "        if record.rho < 0.25:\n    " + LAMBDA + LAMBDA),
    ),
    "writes into its part_state": (
        "damping",
        "inputs_not_written",
        but(
            DAMPING + REGISTER,
            LAMBDA,
            '        part_state["count"] = part_state.get("count", 0) + 1\n' + LAMBDA,
        ),
    ),
    "NaN": (
        "damping",
        "finite",
        but(
            DAMPING + REGISTER,
            LAMBDA,
            "        return strength._replace(lam=strength.lam * record.rho), part_state\n",
        ),
    ),
    "follows ρ the wrong way": (
        "damping",
        "lambda_grows_when_bad",
        but(
            DAMPING.replace("lam: float = 1.0", "lam: float = 1.0\n    follows_rho = True")
            + REGISTER,
            LAMBDA,
            FOLLOWS.replace("lam * 2, strength.lam / 2", "lam / 2, strength.lam"),
        ),
    ),
    "loses η": (
        "damping",
        "eta_kept",
        but(
            DAMPING + REGISTER,
            "return (strength,)",
            "return (strength._replace(eta=strength.lam),)",
        ),
    ),
    "no dataclass": (
        "momentum",
        "round_trip",
        but(MOMENTUM, "@dataclass(frozen=True)\n", ""),
    ),
    "goes uphill": (
        "momentum",
        "starts_downhill",
        but(
            MOMENTUM,
            "return restriction.minimiser(strength)",
            "return -restriction.minimiser(strength)",
        ),
    ),
    "γ without an inverse": (
        "schedule",
        "gamma_implies_inverse",
        but(SCHEDULE, "step % 5 == 0, True)", "step % 3 == 0, True)"),
    ),
    "counts in its class": (
        "schedule",
        "deterministic",
        but(
            SCHEDULE,
            "step % 5 == 0, True), part_state",
            "step % 5 == 0, self.odd()), part_state\n\n"
            "    def odd(self):\n"
            "        type(self).calls = getattr(self, 'calls', 0) + 1\n"
            "        return self.calls % 7 == 1",
        ),
    ),
}
