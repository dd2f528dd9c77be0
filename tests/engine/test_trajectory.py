"""45 full-batch steps with exact G, everything adapting, against Algorithm 2 in dense matrices.

Section 9 with lambda_0 = 1: lambda moves every T1 = 5 steps, gamma is searched and the inverse
rebuilt every T2 = T3 = 20 (crossed twice), momentum from the model. The oracle knows nothing of the
package.
"""

import math
from dataclasses import dataclass, field

import pytest
from oracles import schedules, trajectory

from engine.helpers import (
    ADAPTIVE,
    STRUCTURES,
    close,
    engine_of,
    flat,
    in_order,
    matrix_of,
    moments_of,
    numbers,
    problem,
    theta_of,
)

STEPS, L2, TOL = 45, 1e-5, 1e-8
WIDE, NARROW = (6, 5, 4, 3, 4, 5), (5, 4, 3, 4, 3)


@dataclass(frozen=True)
class Case:
    """A problem, and settings said twice: to the oracle and as the engine's slots."""

    likelihood: str
    dims: tuple[int, ...] = NARROW
    bias: bool | tuple[bool, ...] = True
    count: int = 30
    seed: int = 0
    oracle: dict = field(default_factory=dict)
    slots: dict = field(default_factory=dict)

    def make(self):
        bias = self.bias if isinstance(self.bias, bool) else list(self.bias)
        return problem(self.likelihood, self.dims, self.count, "tanh", bias, self.seed)

    def run(self, net, x, y, structure, steps=STEPS):
        settings = {"lam": 1.0, "eta": L2, **self.oracle}
        return trajectory.run(
            net.weights,
            net.activations,
            net.bias,
            self.likelihood,
            x,
            y,
            steps,
            structure,
            **settings,
        )

    def engine(self, net, x, y, structure, **options):
        slots = {**ADAPTIVE, **self.slots}
        return engine_of(net, self.likelihood, x, y, l2=L2, structure=structure, **slots, **options)


# N above and below every width; with bias, without, and mixed; lambda_0 = 1 but where said.
CASES = {
    "half": Case("gaussian_half", WIDE),
    "full": Case("gaussian_full", WIDE),
    "bernoulli": Case("bernoulli", WIDE, seed=1),
    "categorical": Case("categorical", WIDE, seed=1),
    "full, no bias": Case("gaussian_full", bias=False),
    "bernoulli, no bias": Case("bernoulli", WIDE, bias=False, seed=2),
    "categorical, mixed bias": Case("categorical", bias=(True, False, False, True)),
    "half, few cases": Case("gaussian_half", (6, 5, 4, 5, 4), count=3),
}


def compare(case, expected, engine, step, tol=TOL):
    """Runs the engine beside the oracle's records: every number of every step."""
    for want in expected:
        where = f"step {want['k']}: "
        close(theta_of(engine), want["theta"], tol)
        record = step(engine)
        got = numbers(record)
        assert record.step == want["k"] and record.batch == case.count, where
        for name in ("loss", "error", "lam", "gamma", "alpha", "predicted"):
            assert got[name] == pytest.approx(want[name], rel=tol, abs=tol), where + name
        mu = 0.0 if math.isnan(got["mu"]) else got["mu"]
        assert mu == pytest.approx(want["mu"], rel=tol, abs=tol), where + "mu"
        assert got["rho"] == pytest.approx(want["rho"], rel=tol, abs=tol, nan_ok=True), where
        tried = [(float(gamma), float(q)) for _, gamma, q in record.candidates]
        assert len(tried) == len(want["candidates"]), where
        for left, right in zip(tried, want["candidates"], strict=True):
            assert left == pytest.approx(right, rel=tol, abs=tol), where + "candidates"
        close(theta_of(engine), want["theta_after"], tol)
        assert float(engine.state_.strength.lam) == pytest.approx(want["lam_after"], rel=tol)
    # what is left behind: the moments, and the inverse of the last refresh
    A, G = moments_of(engine)
    for i in range(len(A)):
        for j in range(len(A)):
            if A[i][j] is not None:
                close(A[i][j], expected[-1]["A"][i][j], tol)
                close(G[i][j], expected[-1]["G"][i][j], tol)
    scale = expected[-1]["preconditioner"].abs().max()
    close(matrix_of(engine) / scale, expected[-1]["preconditioner"] / scale, tol)


#: each case by the generic path too with one structure, in turns
BOTH = {(name, STRUCTURES[n // 2 % 2]) for n, name in enumerate(CASES)}
PAIRS = [(name, structure) for name in CASES for structure in STRUCTURES]


#: each case with one structure, in turns, and one case with both; the others in `make soak`
TOLD = {pair for pair in PAIRS if pair in BOTH or pair[0] == "half"}
TOLD -= {("bernoulli, no bias", structure) for structure in STRUCTURES}  # full has none either


@pytest.mark.parametrize(
    ("name", "structure"),
    [pair if pair in TOLD else pytest.param(*pair, marks=pytest.mark.soak) for pair in PAIRS],
)
def test_every_number_of_every_step(name, structure):
    """the trajectory: theta, h, lambda, gamma, rho, alpha, mu and q.

    Through the explicit plan, and each case with one structure through the generic path too.
    """
    both = (name, structure) in BOTH
    every_number(name, structure, ("explicit", "generic") if both else ("explicit",))


@pytest.mark.soak
@pytest.mark.parametrize(("name", "structure"), [pair for pair in PAIRS if pair not in BOTH])
def test_the_other_half_by_the_generic_path(name, structure):
    every_number(name, structure, ("generic",))


def every_number(name, structure, paths):
    case = CASES[name]
    net, x, y = case.make()
    expected = case.run(net, x, y, structure)
    gammas = [s["gamma"] for s in expected]
    assert gammas[0] == pytest.approx(1.0, abs=1e-5) and min(gammas) < 0.9  # gamma did move
    assert expected[-1]["lam"] < 0.5
    assert [s["k"] for s in expected if len(s["candidates"]) == 3] == [20, 40]
    assert [s["k"] for s in expected if s["refreshed"]] == [1, 2, 3, 20, 40]
    for path in paths:
        compare(case, expected, case.engine(net, x, y, structure, path=path), lambda e: e.step())


# The same against other settings of the algorithm, past the first search for gamma, or past the
# second which takes it to its bounds; each asserts that what it is about took place.
OTHER = {
    "lambda rises": Case(
        "gaussian_full",
        WIDE,
        seed=2,
        oracle={"lam": 0.05},
        slots={"damping": "levenberg_marquardt(lam=0.05)"},
    ),
    "gamma rises": Case(
        "categorical",
        oracle={"gamma": 0.03},
        slots={"damping": "levenberg_marquardt(lam=1.0, gamma=0.03)"},
    ),
    "no clip": Case(
        "gaussian_half",
        oracle={"lam": 4.0, "clip": False},
        slots={"damping": "levenberg_marquardt(lam=4.0, gamma_min=0.0, gamma_max=inf)"},
    ),
    "other bounds": Case(
        "bernoulli",
        WIDE,
        oracle={"gamma_bounds": (0.8, 0.9)},
        slots={"damping": "levenberg_marquardt(lam=1.0, gamma_min=0.8, gamma_max=0.9)"},
    ),
    "no momentum": Case(
        "bernoulli", WIDE, seed=1, oracle={"momentum": False}, slots={"momentum": "rescaled"}
    ),
    "other periods": Case(
        "gaussian_half",
        WIDE,
        oracle={"T1": 3, "T2": 12, "T3": 6, "burn_in": 1},
        slots={
            "schedule": "periodic(T1=3, T2=12, T3=6, burn_in=1)",
            "damping": f"levenberg_marquardt(lam=1.0, omega1={0.95**3!r}, "
            f"omega2={math.sqrt(0.95) ** 12!r})",
        },
    ),
    "pi by the Frobenius norm": Case(
        "categorical",
        seed=2,
        oracle={"pi": "frobenius"},
        slots={"block": "kronecker(pi='frobenius')"},
    ),
    "pi by the spectral norm": Case(
        "gaussian_full",
        oracle={"pi": "spectral"},
        slots={"block": "kronecker(pi='spectral', inverse='eigh')"},
    ),
    "another window": Case(
        "bernoulli",
        seed=1,
        oracle={"decay_cap": 0.7},
        slots={"estimator": "exact(fraction=1.0, limit=0.7)"},
    ),
    "S1 and S2": Case(
        "gaussian_half",
        WIDE,
        count=32,
        oracle={"stats_rows": 20, "model_rows": 13},
        slots={
            "estimator": "exact(fraction=0.6)",  # ceil(19.2) = 20
            "quadratic_model": "exact_fisher(fraction=0.4)",  # ceil(12.8) = 13
        },
    ),
    "S2 the larger": Case(
        "bernoulli",
        WIDE,
        count=32,
        oracle={"stats_rows": 9, "model_rows": 24},
        slots={
            "estimator": "exact(fraction=0.26)",  # ceil(8.32) = 9
            "quadratic_model": "exact_fisher(fraction=0.75)",
        },
    ),
}
MOVED = {
    "lambda rises": lambda s, structure: (
        structure == "block_diagonal" or any(r["lam_after"] > r["lam"] for r in s)
    ),
    "gamma rises": lambda s, _: s[-1]["gamma"] > 0.031,
    "no clip": lambda s, _: max(g for r in s for g, _ in r["candidates"]) > 2.1,
    "other bounds": lambda s, _: s[-1]["gamma"] in (0.8, 0.9),
    "other periods": lambda s, _: len({r["gamma"] for r in s}) > 1,
}


#: each setting with one structure, in turns; the rows in which they meet, one of them with both
EACH = [(name, STRUCTURES[1 - n % 2]) for n, name in enumerate(OTHER) if not name.startswith("S")]
EACH += [*(("S1 and S2", structure) for structure in STRUCTURES), ("S2 the larger", STRUCTURES[1])]
REST = [(name, s) for name in OTHER for s in STRUCTURES if (name, s) not in EACH]


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize(("name", "structure"), [*EACH, *REST])
def test_other_settings_all_the_way(name, structure):
    other_setting(name, structure, STEPS)


@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize(("name", "structure"), EACH)
def test_other_settings(name, structure):
    """the trajectory under other settings, S1 and S2 smaller than S'."""
    other_setting(name, structure, STEPS if name == "other bounds" else 30)


def other_setting(name, structure, steps):
    case = OTHER[name]
    net, x, y = case.make()
    expected = case.run(net, x, y, structure, steps)
    assert MOVED.get(name, lambda s, _: True)(expected, structure)
    paths = ("explicit", "generic") if name.startswith("S") else ("explicit",)
    for path in paths:
        engine = case.engine(net, x, y, structure, path=path)
        compare(case, expected, engine, lambda e: e.step_on(in_order(e)))


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("ramp", [True, False])
def test_the_average_is_of_the_iterates(ramp, start):
    """Section 13: theta-bar averages theta_2, theta_3, ..., what the steps led to."""
    case, xi, steps = CASES["half"], 0.8, 12
    net, x, y = case.make()
    text = f"polyak(xi={xi}, start={start}, ramp={ramp})"
    engine = case.engine(net, x, y, "block_diagonal", average=text)
    seen = [theta_of(engine).clone()]
    for _ in range(steps):
        engine.step()
        seen.append(theta_of(engine).clone())
    if ramp:
        expected = schedules.polyak_path(seen[1:], start=start, xi=xi)[-1]
    else:  # theta-bar is theta before step `start`, and xi theta-bar + (1 - xi) theta from there on
        late = seen[start:]
        weights = [(1 - xi) * xi ** (len(late) - 1 - n) for n in range(len(late))]
        expected = xi ** len(late) * seen[start - 1] + sum(
            w * theta for w, theta in zip(weights, late, strict=True)
        )
    close(flat(engine.network.pack(list(engine.average()))), expected)
