"""The network, its likelihoods, exact curvature and moments, dense and by definition.

Conventions, held by every oracle (paper section 2.1):

- theta = [cvec(W_1); ...; cvec(W_l)], cvec stacks columns; P = number of parameters.
- W_i is [d_i, n_i], where n_i = d_{i-1} + 1 with a bias (last column) and d_{i-1} without.
- Lists are indexed by layer from zero; `A[i][j]` is the moment of the *inputs* of layers i and j
  (the paper's A_bar_{i-1,j-1}), `G[i][j]` that of their pre-activation derivatives.
- N cases, K outputs, float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import hessian, vmap

LIKELIHOODS = ("gaussian_half", "gaussian_full", "bernoulli", "categorical")
ACTIVATIONS = {
    "identity": lambda s: s,
    "linear": lambda s: s,
    "tanh": torch.tanh,
    "logistic": torch.sigmoid,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "softplus": lambda s: torch.logaddexp(s, torch.zeros_like(s)),
}


# --- vec and Kronecker (paper section 2.1) -------------------------------------------------------


def cvec(matrix: Tensor) -> Tensor:
    """Stack the columns: [r, c] -> [r c]."""
    return matrix.t().reshape(-1)


def uncvec(vector: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of cvec: [rows columns] -> [rows, columns]."""
    return vector.reshape(columns, rows).t()


def flatten(weights: list[Tensor]) -> Tensor:
    """theta [P] from the matrices W_i [d_i, n_i]."""
    return torch.cat([cvec(w) for w in weights])


def unflatten(theta: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Matrices shaped like `weights` from theta [P]."""
    parts = torch.split(theta, [w.numel() for w in weights])
    return [uncvec(part, *w.shape) for part, w in zip(parts, weights, strict=True)]


def layer_slices(weights: list[Tensor]) -> list[slice]:
    """Where each layer sits in theta."""
    slices, start = [], 0
    for w in weights:
        slices.append(slice(start, start + w.numel()))
        start += w.numel()
    return slices


# --- the network (paper sections 2.1 and 10) ----------------------------------------------------


class Network(NamedTuple):
    """A multilayer perceptron; omega and phi are only for the transformed networks of section 10.

    weights: W_i [d_i, n_i].  activations: one name per layer; the last is "identity", because the
    likelihood takes z = s_l.  bias: one bool per layer.
    omega: Omega_i [n_{i+1}, n_{i+1}], applied to the input of layer i (after the 1 was appended).
    phi: Phi_i [d_i, d_i], applied to the pre-activation of layer i.
    """

    weights: list[Tensor]
    activations: list[str]
    bias: list[bool]
    omega: list[Tensor] | None = None
    phi: list[Tensor] | None = None


def network(weights, activations, bias=True) -> Network:
    """A Network from plain lists, in float64.

    weights: l matrices.  activations: one name for all hidden layers, or l-1 names, or l names of
    which the last is the identity.  bias: one bool for all layers, or one per layer.
    """
    weights = [torch.as_tensor(w).detach().to(torch.float64).clone() for w in weights]
    depth = len(weights)
    names = [activations] * (depth - 1) if isinstance(activations, str) else list(activations)
    if len(names) == depth - 1:
        names.append("identity")
    if len(names) != depth or names[-1] not in ("identity", "linear"):
        raise ValueError(f"{depth} layers need {depth - 1} hidden activations, got {activations}")
    biases = [bias] * depth if isinstance(bias, bool) else list(bias)
    for i in range(1, depth):
        if weights[i].shape[1] != weights[i - 1].shape[0] + int(biases[i]):
            raise ValueError(f"layer {i}: W has shape {tuple(weights[i].shape)}, bias {biases[i]}")
    return Network(weights, names, biases)


def random_network(dims, activations, bias=True, seed=0, scale=1.0) -> Network:
    """Dense N(0, scale^2 / fan-in) weights, bias columns included; dims = (d_0, ..., d_l)."""
    gen = torch.Generator().manual_seed(seed)
    biases = [bias] * (len(dims) - 1) if isinstance(bias, bool) else list(bias)
    weights = []
    for d_in, d_out, b in zip(dims[:-1], dims[1:], biases, strict=True):
        draw = torch.randn(d_out, d_in + int(b), generator=gen, dtype=torch.float64)
        weights.append(draw * scale / math.sqrt(d_in + int(b)))
    return network(weights, activations, biases)


def forward(net: Network, x: Tensor, shifts: list[Tensor] | None = None):
    """One pass. x: [d_0] or [N, d_0]; shifts: one [d_i] per layer, added to s_i (to differentiate).

    Each case may have weights W_i [N, d_i, n_i] and shifts [N, d_i] of its own.
    Returns (inputs, z): inputs[i] is what W_i multiplies, [..., n_i]; z [..., K].
    """
    a, inputs = x, []
    for i, (w, name, b) in enumerate(zip(net.weights, net.activations, net.bias, strict=True)):
        if b:
            a = torch.cat([a, torch.ones_like(a[..., :1])], dim=-1)
        if net.omega is not None:
            a = a @ net.omega[i].t()
        inputs.append(a)
        s = a @ w.t() if w.ndim == 2 else (w @ a[..., None])[..., 0]
        if shifts is not None:
            s = s + shifts[i]
        if net.phi is not None:
            s = s @ net.phi[i].t()
        a = ACTIVATIONS[name](s)
    return inputs, a


def outputs(net: Network, x: Tensor) -> Tensor:
    """z [N, K]."""
    return forward(net, x)[1]


def at(net: Network, theta: Tensor) -> Network:
    """The same network with the parameters theta [P]."""
    return net._replace(weights=unflatten(theta, net.weights))


def rows_of_jacobian(z: Tensor, leaves: list[Tensor]) -> list[list[Tensor]]:
    """d z_k / d leaf by autograd, each case with leaves of its own: [k][leaf] [N, ...]."""
    return [list(torch.autograd.grad(column.sum(), leaves, retain_graph=True)) for column in z.t()]


def jacobian(net: Network, x: Tensor) -> Tensor:
    """J = dz/dtheta per case: [N, K, P] (paper section 2.2)."""
    own = [w.detach().expand(len(x), *w.shape).requires_grad_() for w in net.weights]
    rows = rows_of_jacobian(outputs(net._replace(weights=own), x), own)
    # cvec of each case's matrix
    return torch.stack([torch.cat([d.mT.flatten(1) for d in row], dim=1) for row in rows], dim=1)


def jacobian_s(net: Network, x: Tensor) -> list[Tensor]:
    """J_{s_i} = dz/ds_i per case: one [N, K, d_i] per layer (paper section 5)."""
    zeros = [torch.zeros(len(x), len(w), dtype=x.dtype, requires_grad=True) for w in net.weights]
    rows = rows_of_jacobian(forward(net, x, zeros)[1], zeros)
    return [torch.stack(column, dim=1) for column in zip(*rows, strict=True)]


# --- likelihoods (paper section 2.1) -------------------------------------------------------------


def as_targets(likelihood: str, targets: Tensor, width: int) -> Tensor:
    """Targets [N, K] in float64; class indices [N] become one-hot rows."""
    targets = torch.as_tensor(targets)
    if likelihood == "categorical" and targets.ndim == 1:
        return torch.nn.functional.one_hot(targets.long(), width).to(torch.float64)
    return targets.to(torch.float64)


def case_loss(likelihood: str, z: Tensor, y: Tensor) -> Tensor:
    """L(y, z) per case: z, y [..., K] -> [...]. Bernoulli targets may be grey, in [0, 1]."""
    if likelihood == "gaussian_half":
        return 0.5 * ((y - z) ** 2).sum(-1)
    if likelihood == "gaussian_full":
        return ((y - z) ** 2).sum(-1)
    if likelihood == "bernoulli":
        return (torch.logaddexp(z, torch.zeros_like(z)) - y * z).sum(-1)
    if likelihood == "categorical":
        return -(y * torch.log_softmax(z, dim=-1)).sum(-1)
    raise ValueError(f"unknown likelihood {likelihood!r}, expected one of {LIKELIHOODS}")


def score(likelihood: str, z: Tensor, y: Tensor) -> Tensor:
    """dL/dz per case, by autograd: [N, K]."""
    with torch.enable_grad():  # whoever asks may have none
        z = z.detach().requires_grad_()
        return torch.autograd.grad(case_loss(likelihood, z, y).sum(), z)[0]


def output_fisher(likelihood: str, z: Tensor) -> Tensor:
    """F_R per case, by the table of paper section 2.1: z [N, K] -> [N, K, K]."""
    if likelihood == "gaussian_half":
        return torch.eye(z.shape[1], dtype=z.dtype).expand(len(z), -1, -1)
    if likelihood == "gaussian_full":
        return 2 * torch.eye(z.shape[1], dtype=z.dtype).expand(len(z), -1, -1)
    if likelihood == "bernoulli":
        p = torch.sigmoid(z)
        return torch.diag_embed(p * (1 - p))
    if likelihood == "categorical":
        p = torch.softmax(z, dim=-1)
        return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    raise ValueError(f"unknown likelihood {likelihood!r}, expected one of {LIKELIHOODS}")


def output_factor(likelihood: str, z: Tensor) -> Tensor:
    """B with F_R = B B^T per case: z [N, K] -> [N, K, K] (paper section 2.1)."""
    if likelihood == "categorical":
        p = torch.softmax(z, dim=-1)
        return torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    return output_fisher(likelihood, z).sqrt()


def model_atoms(likelihood: str, z: Tensor) -> tuple[Tensor, Tensor]:
    """Targets and weights that stand for y ~ R_{y|z} exactly: y [N, Q, K], weights [N, Q].

    Categorical: the K classes. Bernoulli: all 2^K binary vectors. Gaussian: the 2K points
    z +- sigma sqrt(K) e_j, exact for every expectation of second degree in the score.
    """
    n, width = z.shape
    eye = torch.eye(width, dtype=z.dtype)
    if likelihood == "categorical":
        return eye.expand(n, width, width), torch.softmax(z, dim=-1)
    if likelihood == "bernoulli":
        bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=z.dtype)] * width)
        bits = bits.reshape(2**width, width)
        p = torch.sigmoid(z)[:, None, :]
        return bits.expand(n, -1, -1), (p * bits + (1 - p) * (1 - bits)).prod(dim=-1)
    variance = {"gaussian_half": 1.0, "gaussian_full": 0.5}[likelihood]
    points = math.sqrt(variance * width) * torch.cat([eye, -eye])
    weights = torch.full((n, 2 * width), 1 / (2 * width), dtype=z.dtype)
    return z[:, None, :] + points, weights


def error(likelihood: str, z: Tensor, y: Tensor) -> float:
    """What is reported: squared error, summed over outputs, mean over cases; classes: % wrong."""
    if likelihood == "categorical":
        return 100 * (z.argmax(1) != y.argmax(1)).double().mean().item()
    mean = torch.sigmoid(z) if likelihood == "bernoulli" else z
    return ((mean - y) ** 2).sum(1).mean().item()


# --- the objective (paper sections 2.1 and 6) --------------------------------------------------


def objective(net: Network, likelihood: str, x: Tensor, y: Tensor, eta: float = 0.0) -> Tensor:
    """h = mean loss + eta/2 |theta|^2, biases included: scalar."""
    penalty = 0.5 * eta * (flatten(net.weights) ** 2).sum()
    return case_loss(likelihood, outputs(net, x), y).mean() + penalty


def gradient(net: Network, likelihood: str, x: Tensor, y: Tensor, eta: float = 0.0) -> Tensor:
    """grad h [P], by autograd through the whole objective."""
    theta = flatten(net.weights).detach().requires_grad_()
    return torch.autograd.grad(objective(at(net, theta), likelihood, x, y, eta), theta)[0]


def objective_hessian(net: Network, likelihood: str, x: Tensor, y: Tensor, eta=0.0) -> Tensor:
    """Hessian of h [P, P], by autograd."""
    return hessian(lambda t: objective(at(net, t), likelihood, x, y, eta))(flatten(net.weights))


# --- exact curvature (paper section 2.2) ---------------------------------------------------------


def sandwich(jac: Tensor, middle: Tensor) -> Tensor:
    """Mean over cases of J^T M J: [N, K, P], [N, K, K] -> [P, P]."""
    return torch.einsum("nkp,nkl,nlq->pq", jac, middle, jac) / len(jac)


def fisher(net: Network, likelihood: str, x: Tensor) -> Tensor:
    """F = E_x[J^T F_R J]: [P, P]."""
    return sandwich(jacobian(net, x), output_fisher(likelihood, outputs(net, x)))


def fisher_by_atoms(net: Network, likelihood: str, x: Tensor) -> Tensor:
    """F = E_x E_y[Dtheta Dtheta^T] by enumerating the model's targets: [P, P]."""
    z, jac = outputs(net, x), jacobian(net, x)
    y, weight = model_atoms(likelihood, z)
    total = torch.zeros(jac.shape[2], jac.shape[2], dtype=x.dtype)
    for q in range(y.shape[1]):
        dtheta = torch.einsum("nk,nkp->np", score(likelihood, z, y[:, q]), jac)
        total += torch.einsum("n,np,nq->pq", weight[:, q], dtheta, dtheta)
    return total / len(x)


def ggn(net: Network, likelihood: str, x: Tensor, y: Tensor) -> Tensor:
    """Generalized Gauss-Newton E[J^T H_L J], H_L by autograd: [P, P]."""
    curvature = vmap(hessian(lambda a, b: case_loss(likelihood, a, b)))(outputs(net, x), y)
    return sandwich(jacobian(net, x), curvature)


def empirical_fisher(net: Network, likelihood: str, x: Tensor, y: Tensor) -> Tensor:
    """E[Dtheta Dtheta^T] with the training targets y: [P, P]."""
    dtheta = torch.einsum("nk,nkp->np", score(likelihood, outputs(net, x), y), jacobian(net, x))
    return dtheta.t() @ dtheta / len(x)


# --- moments (paper sections 3 and 5) ----------------------------------------------------------


def in_blocks(whole: Tensor, sizes: list[int]) -> list[list[Tensor]]:
    """The blocks [i][j] of sizes[i] rows and sizes[j] columns of a square matrix."""
    return [list(rows.split(sizes, dim=1)) for rows in whole.split(sizes)]


def pairwise(rows: list[Tensor]) -> list[list[Tensor]]:
    """E[r_i r_j^T] over the N rows, for all pairs: rows[i] [N, n_i] -> [i][j] [n_i, n_j]."""
    whole = torch.cat(rows, dim=1)
    return in_blocks(whole.t() @ whole / len(whole), [r.shape[1] for r in rows])


def moments_a(net: Network, x: Tensor) -> list[list[Tensor]]:
    """A_bar for all pairs of layers: [i][j] [n_i, n_j]."""
    return pairwise(forward(net, x)[0])


def moments_g(net: Network, likelihood: str, x: Tensor) -> list[list[Tensor]]:
    """Exact G_ij = E_x[J_{s_i}^T F_R J_{s_j}] for all pairs of layers: [i][j] [d_i, d_j]."""
    jacs, middle = jacobian_s(net, x), output_fisher(likelihood, outputs(net, x))
    return in_blocks(sandwich(torch.cat(jacs, dim=2), middle), [j.shape[2] for j in jacs])


def derivatives(net: Network, x: Tensor, cotangents: Tensor) -> list[Tensor]:
    """g_i per case for given dL/dz [N, K]: one [N, d_i] per layer."""
    return [torch.einsum("nk,nkd->nd", cotangents, jac) for jac in jacobian_s(net, x)]


def moments_g_empirical(net: Network, likelihood: str, x: Tensor, y: Tensor):
    """G_ij from the training targets (not the paper's G): [i][j] [d_i, d_j]."""
    return pairwise(derivatives(net, x, score(likelihood, outputs(net, x), y)))


def decay(k: int, cap: float = 0.95) -> float:
    """epsilon at iteration k = 1, 2, ... (paper section 5)."""
    return min(1 - 1 / k, cap)
