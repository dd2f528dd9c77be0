"""Small models made of modules and a function of them, and what a step makes of their gradient."""

import torch
from torch import nn
from torch.nn import functional

import kfac_lab as kl

from .engine_side import laboratory

N = 12


def drawn(*shape):
    g = torch.Generator().manual_seed(len(shape) + shape[-1])
    return torch.randn(N, *shape, generator=g, dtype=torch.float64)


def labels(*shape, classes=3):
    return torch.randint(0, classes, (N, *shape), generator=torch.Generator().manual_seed(7))


VECTORS, SEQUENCES, PICTURES = drawn(6), drawn(8, 6), drawn(4, 6, 6)
TOKENS = labels(8, classes=9)


class Of(nn.Module):
    """Modules, and a function of them and the inputs."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.function(self, x)


def updated(make, inputs, targets, fallback=None, face="Preconditioner"):
    """P∇h of each parameter (or the step that KFAC makes), and the optimiser."""
    torch.manual_seed(0)
    model = make().double()
    recipe = kl.Recipe.named("small_batch", lab=laboratory()).replace(
        estimator="exact(fraction=1.0)",
        damping="constant(lam=1e-3)",
        momentum="fixed(lr=1.0, mu=0.0)",
        **({"fallback": fallback} if fallback else {}),
    )
    if face == "KFAC":
        optimiser = kl.KFAC(model, recipe=recipe)
        before = [p.detach().clone() for p in model.parameters()]
        optimiser.step(inputs, targets)
        pairs = zip(model.parameters(), before, strict=True)
        return torch.cat([(b - p).detach().flatten() for p, b in pairs]), optimiser
    optimiser = kl.Preconditioner(model, recipe=recipe)
    outputs = model(inputs)
    functional.cross_entropy(outputs.flatten(0, -2), targets.flatten()).backward()
    optimiser.step()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), optimiser


def linear(i, o):
    return nn.Linear(i, o)


def line(function):
    return lambda: Of(function, l=linear(6, 5), h=linear(5, 3))
