"""A small problem, every method, and when two states are one."""

import pytest
import torch
from devices import here
from torch import nn

import kfac_lab as kl
from kfac_lab.baselines import Adam, Muon, Nag, Soap
from kfac_lab.paper.averaging import Polyak
from kfac_lab.paper.schedules import ConstantBatch

METHODS = [
    Nag(lr=0.01, mu_max=0.9),
    Adam(lr=0.01, decay=0.5, total_steps=12),
    Muon(lr=0.01, adam_lr=0.003, decay=0.5, total_steps=12),
    Muon(lr=0.02, momentum=0.9, adjust="match_rms_adamw", hidden_only=True, ns_steps=3),
    Soap(lr=0.01, every=3, decay=0.5, total_steps=12),
]

METHOD_IDS = ["nag", "adam", "muon", "muon_hidden_only", "soap"]

every_method = pytest.mark.parametrize("method", METHODS, ids=METHOD_IDS)


def tiny(dtype=torch.float32, device=None, noisy=False, l2=0.01, seed=0) -> kl.Problem:
    """40 cases, three layers; with `noisy` also dropout and the buffers of a batch norm."""
    device = device or here()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)]
        if noisy:
            layers[2:2] = [nn.BatchNorm1d(5), nn.Dropout(0.2)]
        model = nn.Sequential(*layers).to(device, dtype)
        torch.manual_seed(1)
        x = torch.randn(40, 6).to(device, dtype)
        y = torch.rand(40, 4).to(device, dtype)
    return kl.Problem(model=model, likelihood="bernoulli", inputs=x, targets=y, l2=l2)


def attach(method, problem, seed=0, size=16, average=None, **options):
    recipe = {"batch": ConstantBatch(size), "average": average or Polyak()}
    return method.attach(problem, recipe, seed, **options)


def theta(problem):
    return [p.detach().clone() for p in problem.model.parameters()]


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
