"""Real nets by the clock: amortised K-FAC beside Adam and Muon, in training seconds of one thread.

    OMP_NUM_THREADS=1 python results/real_nets.py conv 25 --seeds 0 2
    OMP_NUM_THREADS=1 python results/real_nets.py gpt 35 --seeds 0 2

``conv`` is a residual net with GroupNorm on MNIST's images, ``gpt`` a two-layer transformer on the
characters of Python's own documentation. Each method has a linear decay to the horizon and a
warm-up. Seconds are the process's own, training alone; a line per run goes to real_nets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl
from kfac_lab.problems.mnist import mnist_arrays

RESULTS = Path(__file__).resolve().parent
LEVELS = {"conv": (0.10, 0.05), "gpt": (1.80, 1.55)}
LEAVE = {"conv": ("GroupNorm", "*.bias"), "gpt": ("Embedding", "LayerNorm", "*.bias")}
EVERY = {"conv": 25, "gpt": 10}


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(4, c_out) for _ in range(2))
        same = stride == 1 and c_in == c_out
        self.short = nn.Identity() if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, c, h, w]``."""
        inner = functional.relu(self.norms[0](self.one(x)))
        return functional.relu(self.norms[1](self.two(inner)) + self.short(x))


class ConvNet(nn.Module):
    """A stem, two residual blocks, a mean and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.GroupNorm(4, 16)
        self.blocks = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Layer(nn.Module):
    """Causal attention and a wide layer, each behind a norm."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, t, d]``."""
        y = self.norms[0](x)
        n, t, d = y.shape
        q, k, v = (
            m(y).view(n, t, self.heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).reshape(n, t, d))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class Gpt(nn.Module):
    """Characters to the next one's logits."""

    def __init__(self, symbols: int, d: int = 128, length: int = 64) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(symbols, d), nn.Embedding(length, d)
        self.layers = nn.Sequential(Layer(d, 4), Layer(d, 4))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, symbols)
        for m in self.modules():
            if isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, std=m.in_features**-0.5)
                nn.init.zeros_(m.bias)

    def forward(self, t: Tensor) -> Tensor:
        """``[n, t]`` to ``[n, t, symbols]``."""
        places = torch.arange(t.shape[1]).expand(t.shape[0], -1)
        return self.head(self.norm(self.layers(self.symbol(t) + self.place(places))))


class Task:
    """A model, its batches, and the cases its loss is measured on."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.name, self.draws = name, torch.Generator().manual_seed(1000 + seed)
        fixed = torch.Generator().manual_seed(7)
        if name == "conv":
            images, labels = mnist_arrays()[:2]
            self.x, self.y = (images.view(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081, labels.long()
            self.model: nn.Module = ConvNet()
            rows = torch.randperm(len(self.x), generator=fixed)[:2000]
            self.held = self.x[rows], self.y[rows]
        else:
            from pydoc_data import topics

            text = "".join(topics.topics[key] for key in sorted(topics.topics))
            codes = [min(ord(c), 127) for c in text]
            index = {c: i for i, c in enumerate(sorted(set(codes)))}
            self.x = torch.tensor([index[c] for c in codes])
            self.model = Gpt(len(index))
            self.held = self._windows(96, fixed)

    def _windows(self, n: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(self.x) - 65, (n,), generator=draws)
        rows = torch.stack([self.x[s : s + 65] for s in starts])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def batch(self) -> tuple[Tensor, Tensor]:
        """128 images, or 32 windows of 64 characters."""
        if self.name == "gpt":
            return self._windows(32, self.draws)
        rows = torch.randint(0, len(self.x), (128,), generator=self.draws)
        return self.x[rows], self.y[rows]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(self.model(x).flatten(0, -2), y.flatten())


class Method:
    """Optimisers with their rates, and what comes before them."""

    def __init__(self, name: str, task: Task, lr: float, other: float, options: dict[str, Any]):
        model = task.model
        self.before = lambda: None
        if name == "adam":
            pairs = [(torch.optim.Adam(model.parameters(), lr, (0.9, 0.99), fused=True), lr)]
        else:
            leave = LEAVE[task.name]
            recipe = kl.Recipe.named("amortised").replace(**options)
            pre = kl.Preconditioner(model, recipe=recipe, leave=leave, normalise=True)
            matrices, others = pre.parameters, pre.others
            if name == "kfac":
                self.before = lambda: pre.step() and None
                sgd = torch.optim.SGD(matrices, lr, momentum=0.9, dampening=0.9)
                pairs = [(sgd, lr)]
            else:  # torch's Muon takes matrices: the same memory as one
                pre.remove()
                flat = [p.detach().flatten(1) for p in matrices]

                def hand_over() -> None:
                    for a, p in zip(flat, matrices, strict=True):
                        a.grad = p.grad.flatten(1)

                self.before = hand_over
                settings = {"momentum": 0.9, "weight_decay": 0.0}
                muon = torch.optim.Muon(flat, lr, adjust_lr_fn="match_rms_adamw", **settings)
                pairs = [(muon, lr)]
            pairs.append((torch.optim.Adam(others, other, (0.9, 0.99), fused=True), other))
        self.pairs = pairs

    def step(self, factor: float) -> None:
        """One update at this share of the rates."""
        self.before()
        for optimiser, lr in self.pairs:
            optimiser.param_groups[0]["lr"] = lr * factor
            optimiser.step()


def run(args: argparse.Namespace, name: str, lr: float, warm: float, seed: int) -> dict[str, Any]:
    """One run to the horizon."""
    task = Task(args.task, seed)
    options = dict(part.split("=", 1) for part in args.set)
    method = Method(name, task, lr, args.other, options if name == "kfac" else {})
    spent = forward = 0.0
    curve: list[tuple[int, float, float]] = []
    k = 0
    while spent < args.seconds:
        x, y = task.batch()
        start = time.process_time()
        rise = min(1.0, (spent + 0.01) / (warm * args.seconds)) if warm else 1.0
        loss = task.loss(x, y)
        task.model.zero_grad(set_to_none=True)
        loss.backward()
        half = time.process_time()
        method.step(max(0.02, 1 - spent / args.seconds) * rise)
        end = time.process_time()
        spent, forward, k = spent + end - start, forward + half - start, k + 1
        if k % EVERY[args.task] == 0:
            with torch.no_grad():
                held = float(task.loss(*task.held))
            curve.append((k, round(spent, 2), round(held, 4)))
            if not math.isfinite(held):
                break
    reached = {
        level: next(((s, n) for n, s, loss in curve if loss <= level), None)
        for level in LEVELS[args.task]
    }
    return {
        "task": args.task, "method": name, "lr": lr, "warm": warm, "seed": seed,
        "seconds": args.seconds, "steps": k, "ms": round(spent / k * 1e3, 2),
        "ms_backward": round(forward / k * 1e3, 2), "last": curve[-1][2],
        "reached": {str(level): found for level, found in reached.items()},
        "set": args.set if name == "kfac" else [], "curve": curve,
    }  # fmt: skip


BEST = {  # learning rate and warm-up
    "conv": {"kfac": (0.015, 0.0), "adam": (0.02, 0.05), "muon": (0.02, 0.05)},
    "gpt": {"kfac": (0.005, 0.0), "adam": (0.005, 0.1), "muon": (0.005, 0.1)},
}


def main() -> None:
    """Runs the methods one after the other, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(LEVELS))
    parser.add_argument("seconds", type=float)
    parser.add_argument("--methods", nargs="+", default=["kfac", "adam", "muon"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--lr", type=float, help="in place of the best known")
    parser.add_argument("--other", type=float, default=3e-3, help="Adam's, for what is left to it")
    parser.add_argument("--set", action="append", default=[], metavar="SLOT=TEXT")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        for name in args.methods:
            lr, warm = BEST[args.task][name]
            found = run(args, name, args.lr or lr, warm, seed)
            with (RESULTS / "real_nets.jsonl").open("a") as file:
                file.write(json.dumps(found) + "\n")
            shown = {key: found[key] for key in found if key != "curve"}
            print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
