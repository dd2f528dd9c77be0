"""What a layer's curvature is, from per-case gradients: torch and nothing of the engine's.

A case goes through the network alone, so which rows are its own is never a question. The Fisher is
taken by all columns of a factor B of F_R (F_R = B Bᵀ), or by targets sampled from the model.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.nn.functional import pad

COLUMNS = 4096  # more than that for one case is a mistake in a test


def columns(outputs, kind):
    """All columns of B for one case, ``[K, *outputs.shape]``; ``outputs`` are ``[1, ...]``."""
    z = outputs.detach()
    eye = torch.eye(z.numel(), dtype=z.dtype).view(-1, *z.shape)
    assert len(eye) <= COLUMNS
    if kind == "gaussian":
        return eye
    if kind == "bernoulli":
        p = torch.sigmoid(z)
        return eye * (p * (1 - p)).sqrt()
    if kind == "actor_critic":  # four classes, and a number with ½(y − z)²
        first, last = columns(z[:, :4], "categorical"), columns(z[:, 4:], "gaussian")
        return torch.cat([pad(first, (0, 1)), pad(last, (4, 0))])
    dimension = {"categorical": -1, "channels": 1}[kind]
    p = torch.softmax(z, dimension)
    # Of class c at a place: √p_c (p − e_c) there; Σ_c p_c (p − e_c)(p − e_c)ᵀ = diag p − p pᵀ.
    here = eye.amax(dimension + 1 if dimension > 0 else dimension, keepdim=True)
    weight = (p * eye).sum((*range(1, eye.dim()),), keepdim=True) / places(z, dimension)
    return (p * here - eye) * weight.sqrt()


def places(outputs, dimension):
    """A case's categorical loss is the mean over so many; F_R is that of the mean."""
    return outputs.numel() // len(outputs) // outputs.shape[dimension]


def draws(outputs, kind, generator, samples):
    """So many cotangents of one case, ``[samples, 1, ...]``; ``outputs`` are ``[1, ...]``."""
    z = outputs.detach().expand(samples, *outputs.shape[1:])
    return sampled(z, kind, generator)[:, None]


def sampled(outputs, kind, generator):
    """A cotangent of each case with E[b bᵀ] = F_R: ∇_z of −log r(y|z), y drawn from the model.

    For a loss that is the mean over places, 1/√places of it.
    """
    z = outputs.detach()
    if kind == "gaussian":
        return torch.randn(z.shape, generator=generator, dtype=z.dtype)
    if kind == "bernoulli":
        p = torch.sigmoid(z)
        return p - (torch.rand(z.shape, generator=generator, dtype=z.dtype) < p).to(z.dtype)
    if kind == "actor_critic":
        policy = sampled(z[:, :4], "categorical", generator)
        return torch.cat([policy, sampled(z[:, 4:], "gaussian", generator)], 1)
    dimension = {"categorical": -1, "channels": 1}[kind]
    p = torch.softmax(z, dimension).movedim(dimension, -1)
    drawn = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator)
    hot = functional.one_hot(drawn.view(p.shape[:-1]), p.shape[-1]).to(z.dtype)
    return (p - hot).movedim(-1, dimension) / places(z, dimension) ** 0.5


def pulled(outputs, tensors, cotangents):
    """Jᵀb for each of ``cotangents`` ``[K, *outputs.shape]``: per tensor ``[K, *shape]``; zeros
    where nothing depends on it.

    All of them in one backward pass that torch batches, except where a kernel cannot be batched.
    """
    try:
        grads = torch.autograd.grad(
            outputs,
            tensors,
            cotangents,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
    except RuntimeError:
        each = [
            torch.autograd.grad(outputs, tensors, b, retain_graph=True, allow_unused=True)
            for b in cotangents
        ]
        grads = [None if g[0] is None else torch.stack(g) for g in zip(*each, strict=True)]
    return [
        t.new_zeros(len(cotangents), *t.shape) if g is None else g.detach()
        for t, g in zip(tensors, grads, strict=True)
    ]


def case_outputs(model, inputs, whole):
    """Each case's outputs ``[1, ...]`` with their graph.

    One at a time; of a model that couples its cases (a graph) out of one pass over the ``whole``.
    """
    if whole:
        outputs = model(inputs)
        for n in range(len(outputs)):
            yield outputs[n : n + 1]
        return
    for n in range(len(inputs)):
        yield model(inputs[n : n + 1])


def fisher_diagonals(model, inputs, kind, whole=False):
    """Name → the diagonal of the parameter's own Fisher block, of the parameter's shape."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    total = {n: torch.zeros_like(p) for n, p in named.items()}
    count = 0
    for outputs in case_outputs(model, inputs, whole):
        grads = pulled(outputs, list(named.values()), columns(outputs, kind))
        count += 1
        for name, g in zip(named, grads, strict=True):
            total[name] += (g * g).sum(0)
    return {name: (t / count).detach() for name, t in total.items()}


def sampled_traces(model, inputs, kind, blocks, samples, whole=False):
    """Monte Carlo: per-case ‖gradient‖² of each block under targets from the model.

    The mean over cases of the mean over samples estimates the trace of the block. ``blocks`` are
    name → its parameters' names; all of them see the same targets.

    Returns name → the estimate and its standard error (of the sampling; the cases are what they
    are).
    """
    generator = torch.Generator().manual_seed(1)
    named = dict(model.named_parameters())
    needed = sorted({name for names in blocks.values() for name in names})
    means = {block: [] for block in blocks}
    variances = {block: [] for block in blocks}
    for outputs in case_outputs(model, inputs, whole) if blocks else ():
        drawn = draws(outputs, kind, generator, samples)
        grads = pulled(outputs, [named[name] for name in needed], drawn)
        lengths = {name: (g * g).flatten(1).sum(1) for name, g in zip(needed, grads, strict=True)}
        for block, names in blocks.items():
            squares = sum(lengths[name] for name in names)
            means[block].append(squares.mean())
            variances[block].append(squares.var() / samples)
    return {
        block: (
            float(torch.stack(means[block]).mean()),
            float(torch.stack(variances[block]).sum().sqrt() / len(means[block])),
        )
        for block in blocks
    }


# --- rows, case by case ---------------------------------------------------------------------------


class Rows:
    """A layer's (ā, g) of one case that is alone in its batch: whatever is called is the case's.

    Args:
        module: the module whose calls are watched.
        rows_of: its input → ``[S, d]``, without the homogeneous 1.
        bias: whether a 1 is appended.
    """

    def __init__(self, module, rows_of, bias):
        self.rows_of, self.bias = rows_of, bias
        self.inputs, self.outputs = [], []
        self.handle = module.register_forward_hook(self.hook, with_kwargs=True)

    def hook(self, module, args, named, output):
        self.inputs.append((args[0] if args else next(iter(named.values()))).detach())
        out = output.clone()
        self.outputs.append(out)
        return out

    def forget(self):
        self.inputs, self.outputs = [], []

    def remove(self):
        self.handle.remove()

    def a(self):
        rows = torch.cat([self.rows_of(x) for x in self.inputs])
        return torch.cat([rows, rows.new_ones(len(rows), 1)], 1) if self.bias else rows


@dataclass
class Expanded:
    """A block of the expand setting: its two sides and its rows a case.

    Args:
        A, G: the traces of Ā and of G.
        error: the standard error of G's trace.
    """

    A: float
    G: float
    rows: float
    error: float

    @property
    def trace(self):
        return self.A * self.G


def expanded(model, inputs, kind, watched, whole=False, samples=0):
    """tr(Ā) and tr(G) of each of ``watched`` (name → Rows), by the expand setting, case by case.

    Ā = (1/N) Σ_rows ā āᵀ and G = (1/R) Σ_rows g gᵀ, R counting the rows of all cases. Of a model
    that couples its cases a row's g gᵀ is the sum over the cases whose loss it has a part in.
    With ``samples`` G is estimated by that many targets a case, drawn from the model.
    """
    generator = torch.Generator().manual_seed(2)
    N = len(inputs)
    traces = {name: torch.zeros(3, dtype=torch.float64) for name in watched}
    counts = dict.fromkeys(watched, 0)
    for rows in watched.values():
        rows.forget()
    for n, outputs in enumerate(case_outputs(model, inputs, whole)):
        fired = {name: rows for name, rows in watched.items() if rows.outputs}
        tensors = [t for rows in fired.values() for t in rows.outputs]
        if samples:
            given = draws(outputs, kind, generator, samples)
        else:
            given = columns(outputs, kind)
        grads = iter(pulled(outputs, tensors, given))
        for name, rows in fired.items():
            if n == 0 or not whole:
                a = rows.a()
                traces[name][0] += (a * a).sum()
                counts[name] += len(a)
            squares = torch.zeros(len(given), dtype=torch.float64)
            for out in rows.outputs:
                g = next(grads)
                assert g.shape[1:] == out.shape
                squares += (g * g).flatten(1).sum(1)
            if samples:
                traces[name][1] += squares.mean()
                traces[name][2] += squares.var() / samples
            else:
                traces[name][1] += squares.sum()
        if not whole:
            for rows in watched.values():
                rows.forget()
    for rows in watched.values():
        rows.remove()
    found = {}
    for name, (a, g, variance) in traces.items():
        R = max(counts[name], 1)
        found[name] = Expanded(
            float(a) / N, float(g) / R, counts[name] / N, float(variance) ** 0.5 / R
        )
    return found
