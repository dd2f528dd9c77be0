"""A small character transformer: K-FAC against tuned Adam, steps and seconds to one training loss.

    python plugins/kfac-lab-layers/benchmarks/characters.py

The text comes from a small grammar, seeded: subjects and verbs agree, clauses nest, words repeat.
Every method sees the same batches for a seed. The training loss is that of a fixed set of windows,
looked at every few steps; its time is not counted. Adam's rate is the best of a grid, and so are
the two numbers of ``small_batch``; ``robust`` is used as it is. One thread.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor, nn
from torch.nn import functional

import kfac_lab as kl

CONTEXT, WIDTH, HEADS, DEPTH = 32, 48, 4, 2
BATCH, LOOK = 128, 5  # windows per step; steps between two looks at the training loss

# --- the text -------------------------------------------------------------------------------------

NOUNS = ["cat", "dog", "child", "bird", "teacher", "farmer", "horse", "sailor", "stone", "river"]
PLURAL = {"child": "children"}
VERBS = ["see", "follow", "like", "call", "hear", "paint", "remember"]
ADJECTIVES = ["old", "small", "quiet", "green", "happy"]
PLACES = ["near", "behind", "under", "with"]


def noun(draw: random.Random, plural: bool, depth: int) -> str:
    """A noun phrase; what it says of itself may hold another."""
    name = draw.choice(NOUNS)
    if plural:
        name = PLURAL.get(name, name + "s")
    words = [draw.choice(["the", "some"] if plural else ["the", "a", "every"])]
    if draw.random() < 0.3:
        words.append(draw.choice(ADJECTIVES))
    words.append(name)
    if depth and draw.random() < 0.25:
        words += [draw.choice(PLACES), noun(draw, draw.random() < 0.4, depth - 1)]
    elif depth and draw.random() < 0.25:
        words += ["that", verb(draw, plural), noun(draw, draw.random() < 0.4, depth - 1)]
    return " ".join(words)


def verb(draw: random.Random, plural: bool) -> str:
    """Agrees with its subject."""
    return draw.choice(VERBS) + ("" if plural else "s")


def sentence(draw: random.Random) -> str:
    """Subject, verb, object."""
    plural = draw.random() < 0.4
    subject = noun(draw, plural, 2)
    return f"{subject} {verb(draw, plural)} {noun(draw, draw.random() < 0.4, 1)}. "


def text(length: int, seed: int) -> str:
    """Sentences, one after the other."""
    draw, parts, size = random.Random(seed), [], 0
    while size < length:
        parts.append(sentence(draw))
        size += len(parts[-1])
    return "".join(parts)[:length]


@dataclass(frozen=True)
class Data:
    """The text as numbers, cut into windows wherever asked."""

    numbers: Tensor
    alphabet: str

    @classmethod
    def made(cls, length: int, seed: int) -> Data:
        """The text of a seed."""
        written = text(length, seed)
        alphabet = "".join(sorted(set(written)))
        where = {letter: n for n, letter in enumerate(alphabet)}
        return cls(torch.tensor([where[letter] for letter in written]), alphabet)

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and the characters that follow them, both ``[N, CONTEXT]``."""
        index = starts[:, None] + torch.arange(CONTEXT + 1)
        cut = self.numbers[index]
        return cut[:, :-1].contiguous(), cut[:, 1:].contiguous()

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end."""
        draw = torch.Generator().manual_seed(seed)
        last = len(self.numbers) - CONTEXT - 1
        while True:
            yield self.windows(torch.randint(0, last, (BATCH,), generator=draw))

    def watched(self) -> tuple[Tensor, Tensor]:
        """The windows on which the training loss is measured: 256, evenly over the text."""
        return self.windows(torch.linspace(0, len(self.numbers) - CONTEXT - 2, 256).long())


# --- the model ------------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a LayerNorm and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``[N, T, WIDTH]`` to the same."""
        y = self.first(x)
        x = x + self.attention(y, y, y, attn_mask=mask, is_causal=True, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class Characters(nn.Module):
    """Logits of the next character at every position, ``[N, T, characters]``."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters)
        for table in (self.letter, self.place):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, letters: Tensor) -> Tensor:
        """For ``[N, T]`` numbers of characters."""
        cases, length = letters.shape
        mask = torch.ones(length, length, dtype=torch.bool, device=letters.device).triu(1)
        places = torch.arange(length, device=letters.device).expand(cases, length)
        x = self.letter(letters) + self.place(places)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.last(x))


# --- the methods ----------------------------------------------------------------------------------

Step = Callable[[Tensor, Tensor], Any]
Method = Callable[[nn.Module, int], Step]


def adam(lr: float) -> Method:
    """torch's Adam at a fixed rate."""

    def made(model: nn.Module, seed: int) -> Step:
        optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))

        def step(inputs: Tensor, targets: Tensor) -> None:
            optimiser.zero_grad()
            logits = model(inputs)
            functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            optimiser.step()

        return step

    return made


def kfac(recipe: str, **slots: str) -> Method:
    """kl.KFAC by a named recipe, some of its slots replaced."""

    def made(model: nn.Module, seed: int) -> Step:
        chosen = kl.Recipe.named(recipe).replace(**slots)
        return kl.KFAC(model, likelihood="categorical", recipe=chosen, seed=seed).step

    return made


@dataclass(frozen=True)
class Outcome:
    """How far one training went."""

    steps: int | None  # to the target; None where it was not reached
    seconds: float  # to the target, or in all
    loss: float  # at the end


def train(method: Method, data: Data, seed: int, target: float, limit: float, most: int) -> Outcome:
    """Until the watched loss is at the target, or ``limit`` seconds or ``most`` steps are over."""
    torch.manual_seed(seed)
    model = Characters(len(data.alphabet))
    step, spent, loss = method(model, seed), 0.0, float("inf")
    inputs, targets = data.watched()
    for k, batch in enumerate(data.batches(seed), start=1):
        began = time.process_time()
        step(*batch)
        spent += time.process_time() - began
        if k % LOOK == 0:
            with torch.no_grad():
                logits = model(inputs)
                loss = float(functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))
            if loss <= target:
                return Outcome(k, spent, loss)
        if spent > limit or k >= most or loss != loss:
            return Outcome(None, spent, loss)
    raise AssertionError("batches have no end")


# --- the experiment -------------------------------------------------------------------------------

RATES = (0.003, 0.006, 0.01, 0.02, 0.04)
CLIPS = (  # of small_batch: rate, κ, λ; the first is the recipe's own
    (0.1, 0.001, 0.01),
    (0.1, 0.001, 0.001),
    (0.1, 0.003, 0.003),
    (0.1, 0.003, 0.01),
    (0.05, 0.01, 0.003),
    (0.1, 0.01, 0.01),
)


def small_batch(lr: float, kappa: float, lam: float) -> Method:
    """``small_batch`` with its rate, the bound on its step and its damping."""
    return kfac(
        "small_batch",
        momentum=f"norm_clip(lr={lr}, kappa={kappa}, mu=0.9, decay=0.997)",
        damping=f"constant(lam={lam})",
    )


def row(name: str, outcomes: list[Outcome]) -> list[str]:
    """One line of the table: every seed's steps, their median, seconds, what a step takes."""
    reached = [o for o in outcomes if o.steps is not None]
    steps = " ".join(str(o.steps or "-") for o in outcomes)
    if len(reached) < len(outcomes):
        ends = " ".join(f"{o.loss:.3f}" for o in outcomes)
        return [name, steps, "-", "-", "-", f"not reached: {ends}"]
    middle = statistics.median(o.steps for o in reached if o.steps is not None)
    seconds = statistics.median(o.seconds for o in reached)
    each = sum(o.seconds for o in reached) / sum(o.steps or 0 for o in reached)
    return [name, steps, f"{middle:g}", f"{seconds:.1f}", f"{1000 * each:.0f}", ""]


def printed(lines: list[list[str]]) -> None:
    """Columns of equal width."""
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
    for line in lines:
        cells = [text.ljust(w) for text, w in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip(), flush=True)


def main() -> None:
    """Tunes on seed 100, then runs the seeds, and prints every number."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument("--target", type=float, default=0.6, help="training loss in nats (0.6)")
    parser.add_argument("--limit", type=float, default=30.0, help="CPU seconds of one run (30)")
    parser.add_argument("--steps", type=int, default=250, help="steps of one run (250)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # recipes for large batches say so
    data = Data.made(60_000, seed=0)
    parameters = sum(p.numel() for p in Characters(len(data.alphabet)).parameters())
    print(f"text: {len(data.numbers)} characters, {len(data.alphabet)} different")
    print(f"model: width {WIDTH}, {DEPTH} blocks, context {CONTEXT}, {parameters} parameters")
    print(f"batches of {BATCH} windows; until the training loss is {options.target}\n")

    def run(method: Method, seed: int) -> Outcome:
        return train(method, data, seed, options.target, options.limit, options.steps)

    def tuned(name: str, grid: dict[str, Method]) -> tuple[str, Method]:
        found = {text: run(method, 100) for text, method in grid.items()}
        printed([[f"tuning {name}", text, *row("", [o])[2:]] for text, o in found.items()])
        best = min(found, key=lambda text: (found[text].steps or 10**9, found[text].loss))
        return f"{name}, {best}", grid[best]

    methods = dict(
        [
            tuned("Adam", {f"lr {lr}": adam(lr) for lr in RATES}),
            tuned(
                "small_batch",
                {
                    f"lr {lr}, kappa {kappa}, lam {lam}": small_batch(lr, kappa, lam)
                    for lr, kappa, lam in CLIPS
                },
            ),
        ]
    )
    methods["small_batch as it is"] = kfac("small_batch")
    methods["robust as it is"] = kfac("robust")
    print()
    lines = [["method", "steps of each seed", "median", "CPU s", "ms/step", ""]]
    for name, method in methods.items():
        lines.append(row(name, [run(method, seed) for seed in range(options.seeds)]))
    printed(lines)


if __name__ == "__main__":
    main()
