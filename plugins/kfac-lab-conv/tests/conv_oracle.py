"""Convolutions by loops and K-FAC by dense float64 matrices; knows torch and nothing else.

A network is an ``nn.Sequential``. A convolution's matrix is ``[O, C/groups·K (+1)]``, its columns
in the order of ``weight[o]``, the bias last; matrices are flattened column by column.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap


def flat(matrix: Tensor) -> Tensor:
    """Columns stacked."""
    return matrix.t().reshape(-1)


def matrix_of(module: nn.Module, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's tensors as its matrix."""
    columns = weight.flatten(1)
    return columns if bias is None else torch.cat([columns, bias.unsqueeze(1)], 1)


def patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """``[N, S, groups, C/groups·K (+1)]``, entry by entry: padding by number only."""
    (ph, pw), (sh, sw), (dh, dw) = module.padding, module.stride, module.dilation
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, (pw, pw, ph, ph), mode=mode) if ph or pw else x
    kh, kw = module.kernel_size
    rows = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    columns = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    per = module.in_channels // module.groups
    seen = []
    for i, j, g in itertools.product(range(rows), range(columns), range(module.groups)):
        entries = [
            x[:, g * per + c, i * sh + a * dh, j * sw + b * dw]
            for c, a, b in itertools.product(range(per), range(kh), range(kw))
        ]
        if module.bias is not None:
            entries.append(torch.ones_like(entries[0]))
        seen.append(torch.stack(entries, 1))
    return torch.stack(seen, 1).unflatten(1, (rows * columns, module.groups))


def trace(model: nn.Sequential, x: Tensor):
    """Each layer's input and pre-activation, and z, with a graph."""
    seen, at = {}, x
    for name, module in model.named_children():
        before = at
        at = module(at)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            seen[name] = (before, at)
    return seen, at


def root(likelihood: str, z: Tensor) -> Tensor:
    """B ``[N, K, K]`` with B Bᵀ = F_R, for z ``[N, K]``."""
    if likelihood == "gaussian":
        return torch.eye(z.shape[1], dtype=z.dtype).expand(len(z), -1, -1)
    p = z.softmax(1)
    return torch.diag_embed(p.sqrt()) - p.unsqueeze(2) * p.sqrt().unsqueeze(1)


def factors(model: nn.Sequential, likelihood: str, x: Tensor, reduced=()) -> dict:
    """Layer name -> (A, G), exact targets (12.1, 12.3); layers in ``reduced`` by KFAC-reduce."""
    seen, z = trace(model, x)
    middle = root(likelihood, z.detach().flatten(1))
    found = {}
    for name, (before, after) in seen.items():
        module = model.get_submodule(name)
        groups = getattr(module, "groups", 1)
        if isinstance(module, nn.Conv2d):
            a = patches(module, before.detach())
        else:
            ones = torch.ones_like(before[:, :1])
            a = (torch.cat([before, ones], 1) if module.bias is not None else before).detach()
            a = a[:, None, None]
        outputs = after.shape[1]
        A, G = 0.0, torch.zeros(outputs, outputs, dtype=x.dtype)
        own = torch.arange(outputs) // (outputs // groups)
        for j in range(groups):
            rows = a[:, :, j]
            rows = rows.sum(1, keepdim=True) if name in reduced else rows
            A = A + torch.einsum("nsi,nsj->ij", rows, rows) / len(x)
        for c in range(middle.shape[2]):
            cotangent = middle[:, :, c].reshape(z.shape)
            (g,) = torch.autograd.grad(z, after, cotangent, retain_graph=True)
            g = g.flatten(2) if g.dim() > 2 else g[:, :, None]
            g = g.mean(2, keepdim=True) if name in reduced else g
            G = G + torch.einsum("nis,njs->ij", g, g) / (len(x) * g.shape[2] * groups)
        found[name] = A, G * (own[:, None] == own[None, :])
    return found


def jacobian(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Parameter name -> d z / d parameter ``[N, K, *shape]``."""
    theta = {name: p.detach() for name, p in model.named_parameters()}

    def z_of(parameters, case):
        return functional_call(model, parameters, (case.unsqueeze(0),)).flatten()

    return vmap(jacrev(z_of), (None, 0))(theta, x)


def by_layer(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Layer name -> J ``[N, K, P_i]``, the layer's matrix flattened column by column."""
    found, jac = {}, jacobian(model, x)
    for name, module in model.named_children():
        if not hasattr(module, "weight"):
            continue
        weight = jac[f"{name}.weight"].flatten(3)
        if module.bias is not None:
            weight = torch.cat([weight, jac[f"{name}.bias"].unsqueeze(3)], 3)
        found[name] = weight.transpose(2, 3).flatten(2)
    return found


def fisher(jac: Tensor, middle: Tensor) -> Tensor:
    """E[Jᵀ B Bᵀ J] ``[P, P]``."""
    half = torch.einsum("nkc,nkp->ncp", middle, jac)
    return torch.einsum("ncp,ncq->pq", half, half) / len(jac)


def steps(model, likelihood, x, y, count, lam, gamma, l2, reduced=()):
    """θ after each of ``count`` K-FAC steps with momentum, from the paper's formulas, dense."""
    names = [n for n, m in model.named_children() if hasattr(m, "weight")]
    previous, path, kept = None, [], {}
    for k in range(1, count + 1):
        z = trace(model, x)[1]
        loss = F.cross_entropy(z, y) if likelihood == "categorical" else (
            0.5 * (z - y).square().flatten(1).sum(1).mean()
        )  # fmt: skip
        loss = loss + 0.5 * l2 * sum(p.square().sum() for p in model.parameters())
        gradients = dict(
            zip(
                [n for n, _ in model.named_parameters()],
                torch.autograd.grad(loss, list(model.parameters())),
                strict=True,
            )
        )
        middle = root(likelihood, z.detach().flatten(1))
        directions, slopes = [], []
        for name in names:
            module = model.get_submodule(name)
            grad = matrix_of(module, gradients[f"{name}.weight"], gradients.get(f"{name}.bias"))
            epsilon = min(1 - 1 / k, 0.95)  # section 5
            new = factors(model, likelihood, x, reduced)[name]
            old = kept.get(name, new)
            A, G = kept[name] = tuple(
                epsilon * o + (1 - epsilon) * n for o, n in zip(old, new, strict=True)
            )
            pi = ((A.trace() / len(A)) / (G.trace() / len(G))).sqrt()
            A = A + pi * gamma * torch.eye(len(A), dtype=x.dtype)
            G = G + gamma / pi * torch.eye(len(G), dtype=x.dtype)
            directions.append(-torch.linalg.solve(torch.kron(A, G), flat(grad)))
            slopes.append(flat(grad))
        basis = [torch.cat(directions)] + ([previous] if previous is not None else [])
        jac = torch.cat([by_layer(model, x)[name] for name in names], 2)
        full = fisher(jac, middle) + (lam + l2) * torch.eye(jac.shape[2], dtype=x.dtype)
        V = torch.stack(basis, 1)
        coefficients = torch.linalg.solve(V.t() @ full @ V, -V.t() @ torch.cat(slopes))
        previous = V @ coefficients
        at = 0
        with torch.no_grad():
            for name in names:
                module = model.get_submodule(name)
                width = module.weight[0].numel() + (module.bias is not None)
                size = width * len(module.weight)
                delta = previous[at : at + size].reshape(width, -1).t()
                at += size
                columns = module.weight[0].numel()
                module.weight += delta[:, :columns].reshape(module.weight.shape)
                if module.bias is not None:
                    module.bias += delta[:, columns]
        path.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return path
