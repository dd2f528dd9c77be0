"""The dense Fisher of a small network in float64, by plain autograd, case by case.

Shares no code with what it checks: one case goes through the model at a time, and the Jacobian is
made row by row. Parameters are flattened in the order of ``named_parameters``.
"""

import torch


def jacobian(model, case):
    """∂outputs/∂θ of one case: ``[outputs, parameters]``."""
    parameters = list(model.parameters())
    outputs = model(case.unsqueeze(0)).reshape(-1)
    rows = []
    for output in outputs:
        grads = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        flat = [
            (torch.zeros_like(p) if g is None else g).reshape(-1)
            for g, p in zip(grads, parameters, strict=True)
        ]
        rows.append(torch.cat(flat))
    return torch.stack(rows)


def gaussian_fisher(model, inputs):
    """F = E[JᵀJ] over cases, for ½‖y − z‖²: ``[parameters, parameters]``."""
    total = 0
    for case in inputs:
        J = jacobian(model, case)
        total = total + J.t() @ J
    return total / len(inputs)


def categorical_fisher(model, inputs):
    """F = E[Jᵀ (diag p − p pᵀ) J] over cases, one position."""
    total = 0
    for case in inputs:
        J = jacobian(model, case)
        p = torch.softmax(model(case.unsqueeze(0)).reshape(-1), 0).detach()
        total = total + J.t() @ (torch.diag(p) - torch.outer(p, p)) @ J
    return total / len(inputs)


def places(model, names):
    """Where the parameters called ``names`` stand in the flat order, one after the other."""
    found, at = {}, 0
    for name, parameter in model.named_parameters():
        found[name] = torch.arange(at, at + parameter.numel()).view(parameter.shape)
        at += parameter.numel()
    return [found[name] for name in names]
