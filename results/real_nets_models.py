"""The three nets of real_nets.py, their batches, and the cases their loss is measured on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kfac_lab.problems.mnist import mnist_arrays

__all__ = ["ConvNet", "Gpt", "Task", "Vit"]


SMALL = ((32, 64, 2), (64, 64, 1), (64, 96, 2))  # channels in and out, stride
LARGE = ((32, 64, 2), (64, 128, 2), (128, 192, 1))
DEPTH = {False: 2, True: 5}  # of the transformers


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
    """A stem, three residual blocks, a mean and a linear head."""

    def __init__(self, blocks: Sequence[tuple[int, int, int]] = SMALL) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.GroupNorm(4, 32)
        self.blocks = nn.Sequential(*(Residual(*block) for block in blocks))
        self.head = nn.Linear(blocks[-1][1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Layer(nn.Module):
    """Attention and a wide layer, each behind a norm."""

    def __init__(self, d: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
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
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.o(seen.transpose(1, 2).reshape(n, t, d))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


def _initialised(model: nn.Module) -> None:
    """Variance 1/fan-in, halved standard deviations where a residual is added."""
    for m in model.modules():
        if isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, std=0.02)
        elif isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=m.in_features**-0.5)
            nn.init.zeros_(m.bias)
    for m in model.modules():
        if isinstance(m, Layer):
            m.o.weight.data *= 0.5
            m.down.weight.data *= 0.5


class Gpt(nn.Module):
    """Characters to the next one's logits."""

    def __init__(self, symbols: int, d: int = 128, depth: int = 2, length: int = 64) -> None:
        super().__init__()
        self.symbol, self.place = nn.Embedding(symbols, d), nn.Embedding(length, d)
        self.layers = nn.Sequential(*(Layer(d, 4, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, symbols)
        _initialised(self)

    def forward(self, t: Tensor) -> Tensor:
        """``[n, t]`` to ``[n, t, symbols]``."""
        places = torch.arange(t.shape[1]).expand(t.shape[0], -1)
        return self.head(self.norm(self.layers(self.symbol(t) + self.place(places))))


class Vit(nn.Module):
    """Sixteen patches of 7 by 7 to the logits of ten digits."""

    def __init__(self, d: int = 128, depth: int = 2, side: int = 7) -> None:
        super().__init__()
        self.side = side
        self.patch = nn.Linear(side * side, d)
        self.place = nn.Parameter(0.02 * torch.randn((28 // side) ** 2, d))
        self.layers = nn.Sequential(*(Layer(d, 4, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)
        _initialised(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, 1, 28, 28]`` to logits."""
        patches = x.unfold(2, self.side, self.side).unfold(3, self.side, self.side)
        rows = patches.reshape(len(x), -1, self.side**2)
        return self.head(self.norm(self.layers(self.patch(rows) + self.place)).mean(1))


class Task:
    """A model, its batches, and the cases its loss is measured on: of the training data.

    The small ones have 0.28 to 0.43 million weights and batches of 64 images or 16 windows, the
    large ones 0.9 to 1.1 million and twice as many.
    """

    def __init__(self, name: str, seed: int, large: bool = False) -> None:
        torch.manual_seed(seed)
        self.size = (32 if large else 16) if name == "gpt" else (128 if large else 64)
        self.name, self.draws = name, torch.Generator().manual_seed(1000 + seed)
        fixed = torch.Generator().manual_seed(7)
        if name == "gpt":
            from pydoc_data import topics

            text = "".join(topics.topics[key] for key in sorted(topics.topics))
            codes = [min(ord(c), 127) for c in text]
            index = {c: i for i, c in enumerate(sorted(set(codes)))}
            self.x = torch.tensor([index[c] for c in codes])
            self.model: nn.Module = Gpt(len(index), depth=DEPTH[large])
            self.held = self._windows(32 if large else 48, fixed)
        else:
            images, labels = mnist_arrays()[:2]
            self.x, self.y = (images.view(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081, labels.long()
            self.model = (
                ConvNet(LARGE if large else SMALL) if name == "conv" else Vit(depth=DEPTH[large])
            )
            rows = torch.randperm(len(self.x), generator=fixed)[: 256 if large else 500]
            self.held = self.x[rows], self.y[rows]

    def _windows(self, n: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(0, len(self.x) - 65, (n,), generator=draws)
        rows = torch.stack([self.x[s : s + 65] for s in starts])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images, or windows of 64 characters."""
        if self.name == "gpt":
            return self._windows(self.size, self.draws)
        rows = torch.randint(0, len(self.x), (self.size,), generator=self.draws)
        return self.x[rows], self.y[rows]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return functional.cross_entropy(self.model(x).flatten(0, -2), y.flatten())
