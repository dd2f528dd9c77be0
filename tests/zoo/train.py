"""60 steps of K-FAC, of the Preconditioner and of tuned Adam on every exhibit: a table of losses.

    python tests/zoo/train.py [NAME ...] [--seeds 3] [--steps 60]

Loss is that of the whole training set before and after, in eval mode, as the exhibit's likelihood
takes it. Adam has the best of five rates, the Preconditioner (before SGD with momentum 0.9 and
``kl_clip=1e-3``) the best of three, both chosen on seed 0; ``kl.KFAC`` has nothing to choose.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.utils._pytree import tree_map

sys.path.insert(0, str(Path(__file__).parents[1]))

import kfac_lab as kl
from kfac_lab.core.likelihood import resolve
from zoo.models import ZOO

ADAM = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SGD = (0.03, 0.1, 0.3)


def exhibit(name, seed):
    torch.manual_seed(seed)
    return ZOO[name]()


def whole_loss(zoo, likelihood):
    """Mean over the training set, in eval mode."""
    zoo.model.eval()
    with torch.no_grad():
        loss = float(loss_of(zoo, likelihood, zoo.inputs, zoo.targets))
    zoo.model.train()
    return loss


def loss_of(zoo, likelihood, inputs, targets):
    outputs = zoo.model(inputs)
    if isinstance(outputs, dict):
        outputs, likelihood = likelihood.joined(outputs)
    return likelihood.loss(outputs, targets).mean()


def batches(zoo, steps, seed):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        if zoo.whole:
            yield zoo.inputs, zoo.targets
        else:
            rows = torch.randperm(len(zoo.inputs), generator=g)[: zoo.batch]
            yield zoo.inputs[rows], tree_map(lambda t, at=rows: t[at], zoo.targets)


def trained(name, seed, steps, method, rate=None):
    """(loss before, loss after, seconds a step)."""
    zoo = exhibit(name, seed)
    likelihood = resolve(zoo.likelihood)
    before = whole_loss(zoo, likelihood)
    start = time.perf_counter()
    if method == "kfac":
        opt = kl.KFAC(zoo.model, zoo.likelihood, seed=seed)
        for x, y in batches(zoo, steps, seed):
            opt.step(x, y)
    else:
        if method == "adam":
            base = torch.optim.Adam(zoo.model.parameters(), lr=rate)
            pre = None
        else:
            base = torch.optim.SGD(zoo.model.parameters(), lr=rate, momentum=0.9)
            pre = kl.Preconditioner(
                zoo.model, zoo.likelihood, kl_clip=1e-3, optimizer=base, seed=seed
            )
        for x, y in batches(zoo, steps, seed):
            base.zero_grad()
            loss_of(zoo, likelihood, x, y).backward()
            if pre is not None:
                pre.step()
            base.step()
    return before, whole_loss(zoo, likelihood), (time.perf_counter() - start) / steps


def attempt(*arguments):
    try:
        return trained(*arguments)
    except Exception as error:  # a row of the table says so
        return error


def best(name, steps, method, rates):
    """The rate with the lowest loss on seed 0."""
    found = [(attempt(name, 0, steps, method, rate), rate) for rate in rates]
    good = [(out[1], rate) for out, rate in found if not isinstance(out, Exception)]
    good = [pair for pair in good if pair[0] == pair[0]]
    return min(good)[1] if good else found[0][0]


def row(name, seeds, steps):
    cells, before = [], float("nan")
    for method, rates in (("kfac", ()), ("preconditioner", SGD), ("adam", ADAM)):
        rate = best(name, steps, method, rates) if rates else None
        if isinstance(rate, Exception):
            cells.append(f"{type(rate).__name__}: {str(rate).splitlines()[0][:70]}")
            continue
        runs = [attempt(name, seed, steps, method, rate) for seed in range(seeds)]
        failed = [run for run in runs if isinstance(run, Exception)]
        if failed:
            cells.append(f"{type(failed[0]).__name__}: {str(failed[0]).splitlines()[0][:70]}")
            continue
        before = runs[0][0]
        losses = " ".join(f"{run[1]:.4g}" for run in runs)
        said = f" (lr {rate:g})" if rate else ""
        cells.append(f"{losses}{said}, {1000 * runs[0][2]:.0f} ms")
    print(f"| {name} | {before:.4g} | " + " | ".join(cells) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(ZOO))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| exhibit | at first | kl.KFAC | Preconditioner | Adam |\n|---|---|---|---|---|")
    for name in given.names or list(ZOO):
        row(name, given.seeds, given.steps)


if __name__ == "__main__":
    main()
