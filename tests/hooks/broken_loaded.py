"""Plugins that the loader names, or that come out when they are used: each a module's text."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import kfac_lab as kl
from kfac_lab.errors import PluginError
from kfac_lab.hooks import Lab, PluginWarning

LOADER, NOTE, ATTACH, RUN, KIT = "loader", "loader, a note", "attach", "run", "kit"

HEAD = """
from dataclasses import dataclass
import torch
import kfac_lab as kl
"""
DAMPING = """
@dataclass(frozen=True)
class Mine:
    lam: float = 1.0

    def init(self, problem):
        return kl.DampingStrength(self.lam, self.lam**0.5), {}

    def candidates(self, strength, due):
        return (strength,)

    def adapt(self, strength, part_state, record):
        return strength, part_state
"""
REGISTER = """
@kl.hookimpl
def kfac_register_dampings(register):
    register("mine", Mine, summary="it is mine")
"""


@dataclass(frozen=True)
class Case:
    """A broken plugin: its module, who is to find it, and the sentence; a second one beside it."""

    by: str
    says: str
    source: str
    beside: str = ""  # the module of another distribution
    trial: Callable[[Lab], str] | None = field(default=None, repr=False)


X = torch.rand(24, 6, generator=torch.Generator().manual_seed(1))


def problem() -> kl.Problem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    return kl.Problem(model=model, likelihood="bernoulli", inputs=X, targets=X, l2=1e-3)


def recipe() -> kl.Recipe:
    return kl.Recipe(
        estimator="sampled(fraction=1.0)", quadratic_model="exact_fisher(fraction=1.0)"
    )


def _attached(lab: Lab) -> str:
    """What a model with the module that is claimed twice meets at attach; and the way out."""
    module = sys.modules["broken_module"].Special(4, 3)
    problem = kl.Problem(
        model=nn.Sequential(module), likelihood="gaussian", inputs=X[:, :4], targets=X[:, :3]
    )
    with pytest.raises(PluginError) as caught:
        kl.Run(problem, recipe(), device="cpu")
    kl.Run(problem, recipe().replace(layers={"Special": "broken-dist/broken"}), device="cpu")
    return str(caught.value)


def _claimed(lab: Lab) -> str:
    """What a claim that raises is told as; the built-in claims the module then."""
    with pytest.warns(PluginWarning) as caught:
        run = kl.Run(problem(), recipe(), device="cpu")
    assert {row.claimed_by for row in run.coverage()} == {"kfac-lab/paper"}
    return str(caught[0].message)


def _observed(lab: Lab) -> str:
    """What is noted of an observer that raises at every step."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kl.Run(problem(), recipe(), device="cpu").advance(5)
    told = [str(w.message) for w in caught if issubclass(w.category, PluginWarning)]
    assert len(told) == 3 and told[0].endswith("(1 of 3)") and told[2].endswith("switched off")
    return lab.plugin("broken").why


CLAIM = """
{special}
class Adapter:
    def __init__(self, module, path):
        self.module, self.path = module, path
        self.d_out, self.d_in, self.names = module.out_features, module.in_features, ("weight",)

    def rows_in(self, inputs):
        return inputs.unsqueeze(1)

    def rows_out(self, gradients):
        return gradients.unsqueeze(1)

    def pack(self, tensors):
        return tensors[0]

    def unpack(self, matrix):
        return (matrix,)


@kl.hookimpl
def kfac_claim_layer(module, path):
    return Adapter(module, path) if type(module).__name__ == "Special" else None
"""
SPECIAL = """
class Special(torch.nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)
"""

LOADED: dict[str, Case] = {
    "syntax error": Case(
        LOADER,
        "SyntaxError: '(' was never closed (broken_module.py, line 2)",
        "import kfac_lab as kl\ndef kfac_register_dampings(register:\n    pass\n",
    ),
    "import error": Case(
        LOADER,
        "ModuleNotFoundError: No module named 'tensorflaw'",
        "import tensorflaw\n",
    ),
    "leaves at import": Case(LOADER, "SystemExit: 3", "import sys\nsys.exit(3)\n"),
    "misspelt hook": Case(
        LOADER,
        "there is no hook 'kfac_register_damping' (did you mean 'kfac_register_dampings'?)",
        HEAD + DAMPING + REGISTER.replace("dampings", "damping"),
    ),
    "hook of an unknown slot": Case(
        LOADER,
        "there is no hook 'kfac_register_optimisers' (did you mean 'kfac_register_estimators'?)",
        HEAD + DAMPING + REGISTER.replace("dampings", "optimisers"),
    ),
    "hook without its mark": Case(
        LOADER,
        "kfac_register_dampings is not marked as a hook; write @kl.hookimpl above it",
        HEAD + DAMPING + REGISTER.replace("@kl.hookimpl", ""),
    ),
    "bad signature": Case(
        LOADER,
        "kfac_on_step: the argument 'rec' is none that the hook has (run, record) "
        "(did you mean 'record'?)",
        HEAD + "@kl.hookimpl\ndef kfac_on_step(run, rec):\n    pass\n",
    ),
    "argument with a default": Case(
        LOADER,
        "kfac_on_step: the argument 'record' has a default, so it is never filled; remove the "
        "default",
        HEAD + "@kl.hookimpl\ndef kfac_on_step(run, record=None):\n    pass\n",
    ),
    "asynchronous hook": Case(
        LOADER,
        "kfac_on_step must be a plain function: nobody awaits or iterates it",
        HEAD + "@kl.hookimpl\nasync def kfac_on_step(run, record):\n    pass\n",
    ),
    "wrapping hook": Case(
        LOADER,
        "kfac_on_step is a wrapper; plugins are asked on their own, so wrap nothing",
        HEAD + "@kl.hookimpl(wrapper=True)\ndef kfac_on_step(run):\n    return (yield)\n",
    ),
    "registers an instance": Case(
        LOADER,
        "broken-dist registers the damping 'mine' as Mine(lam=1.0): register the class (or a "
        "factory), not an instance",
        HEAD + DAMPING + REGISTER.replace("Mine,", "Mine(),"),
    ),
    "the methods of another slot": Case(
        LOADER,
        "broken-dist registers the schedule 'mine', but Mine has no due; a schedule has due",
        HEAD + DAMPING + REGISTER.replace("dampings", "schedules"),
    ),
    "a name that is none": Case(
        LOADER,
        "broken-dist registers the damping 'my own': a name is made of letters, digits and _",
        HEAD + DAMPING + REGISTER.replace('"mine"', '"my own"'),
    ),
    "one name twice": Case(
        LOADER,
        "broken-dist registers the damping 'mine' twice; one distribution has one component of a "
        "name",
        HEAD + DAMPING + REGISTER + '    register("mine", Mine)\n',
    ),
    "raises half way": Case(
        LOADER,
        "ZeroDivisionError: division by zero",
        HEAD + DAMPING + REGISTER + "    1 / 0\n",
    ),
    "a recipe with a hole": Case(
        LOADER,
        "the recipe 'mine': a named recipe states every slot; average is missing",
        HEAD + "@kl.hookimpl\ndef kfac_register_recipes(register):\n"
        '    register("mine", "method = nag\\nbatch = constant")\n',
    ),
    "another interface": Case(
        LOADER,
        "it was written for plugin interface 2, and this kfac_lab has interface 1; upgrade this "
        "kfac_lab",
        HEAD + "kfac_lab_api = 2\n" + DAMPING + REGISTER,
    ),
    "a name of another distribution": Case(
        LOADER,
        "the damping 'mine' is registered by broken-dist and other-dist; write broken-dist/mine "
        "or other-dist/mine",
        HEAD + DAMPING + REGISTER,
        beside=HEAD + DAMPING + REGISTER,
    ),
    "a name of the box": Case(
        LOADER,
        "the damping 'tied' is registered by kfac-lab and broken-dist; write kfac-lab/tied or "
        "broken-dist/tied",
        HEAD + DAMPING + REGISTER.replace('"mine"', '"tied"'),
    ),
    "slow import": Case(
        NOTE,
        "slow: took 0.3 s to import",
        "import time\ntime.sleep(0.3)\n" + HEAD + DAMPING + REGISTER,
    ),
    "nothing in it": Case(NOTE, "registers nothing and implements no hook", "import kfac_lab\n"),
    "double claim": Case(
        ATTACH,
        "the module '0' (Special) is claimed by other-dist/other and broken-dist/broken; say "
        "which in the recipe: layers={'Special': 'dist/name'}",
        HEAD + CLAIM.format(special=SPECIAL),
        beside=HEAD + CLAIM.format(special=""),
        trial=_attached,
    ),
    "a claim that raises": Case(
        ATTACH,
        "the plugin broken-dist/broken: kfac_claim_layer failed on the module '0' (Linear): "
        "KeyError: '0'",
        HEAD + "@kl.hookimpl\ndef kfac_claim_layer(module, path):\n    return {}[path]\n",
        trial=_claimed,
    ),
    "raising observer": Case(
        RUN,
        "kfac_on_step was switched off, it raised 3 times: ZeroDivisionError: division by zero",
        HEAD + "@kl.hookimpl\ndef kfac_on_step(run, record):\n    1 / 0\n",
        trial=_observed,
    ),
}
