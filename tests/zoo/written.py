"""Models written out, and two graph networks: MobileNetV3, a U-Net, experts, a VAE and others.

The blocks of MobileNetV3 are here since ``timm`` cannot be imported without torchvision.
"""

import torch
from torch import nn

from .exhibit import Zoo, pictures, tokens


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)

    def forward(self, x):
        s = x.mean((2, 3), keepdim=True)
        return x * nn.functional.hardsigmoid(self.up(nn.functional.silu(self.down(s))))


class Inverted(nn.Module):
    """MobileNetV3's block: expand, depthwise, excite, project."""

    def __init__(self, width, wide):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            nn.Hardswish(), Excite(wide), nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


class MobileNet(nn.Module):
    """The essential blocks of MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.block, self.head = Inverted(6, 8), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.block(nn.functional.hardswish(self.stem(x))).mean((2, 3)))


def mobilenetv3():
    return Zoo(MobileNet(), *pictures())


class Tagger(nn.Module):
    """A bidirectional LSTM; a class for each token."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=batch_first)
        self.head = nn.Linear(12, 5)
        self.batch_first = batch_first

    def forward(self, x):
        e = self.table(x)
        if self.batch_first:
            return self.head(self.lstm(e)[0])
        return self.head(self.lstm(e.transpose(0, 1))[0]).transpose(0, 1)


def lstm_tagger(batch_first=True):
    x = tokens()[:, :-1].contiguous()
    return Zoo(Tagger(batch_first), x, (x + x.flip(1)) % 5)


class UNet(nn.Module):
    """Down, up, and across; classes in dimension 1."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(1, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.leave = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = torch.relu(self.enter(x))
        b = torch.relu(self.up(torch.relu(self.down(a))))
        return self.leave(self.norm(torch.cat([a, b], 1)))


def unet():
    x, _ = pictures()
    y = (x[:, 0] > 0.3).long() + (x[:, 0] > 1).long()
    return Zoo(UNet(), x, y, nn.CrossEntropyLoss(), "channels", cases=2)


class Experts(nn.Module):
    """Each case goes to the expert that the gate likes best."""

    def __init__(self):
        super().__init__()
        self.gate, self.last = nn.Linear(8, 4), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 6) for _ in range(4))

    def forward(self, x):
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        y = x.new_zeros(len(x), 6)
        for n, expert in enumerate(self.experts):
            rows = (chosen == n).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, torch.tanh(expert(x[rows])) * weight[rows, None])
        return self.last(y)


def experts():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=g)
    y = (x[:, :4] * x[:, 4:]).sum(1)
    return Zoo(Experts(), x, (y > 0).long() + (y > 1).long(), cases=8)


class VAE(nn.Module):
    """Pixels, and noise behind them; logits of the pixels."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 16), nn.Tanh())
        self.mean, self.spread = nn.Linear(16, 3), nn.Linear(16, 3)
        self.decode = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 64))

    def code(self, x):
        h = self.encode(x)
        return self.mean(h), self.spread(h)

    def forward(self, x):
        mean, spread = self.code(x[:, :64])
        return self.decode(mean + torch.exp(0.5 * spread) * x[:, 64:])


def vae():
    x, _ = pictures()
    x = torch.sigmoid(3 * x.flatten(1) - 1)
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(len(x), 3, generator=g)
    return Zoo(VAE(), torch.cat([x, noise], 1), x, "bernoulli", "bernoulli")


class PINN(nn.Module):
    """u″ + u, and u: value and two derivatives go through each Linear as three rows of a case."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(2, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.out = nn.Linear(12, 1, bias=False)

    def forward(self, x):
        one, none = torch.ones_like(x), torch.zeros_like(x)
        s = torch.stack([torch.cat(p, 1) for p in ((x, one), (one, none), (none, none))], 1)
        for layer in (self.one, self.two):
            z, first, second = layer(s).unbind(1)
            t = torch.tanh(z)
            slope = 1 - t * t
            s = torch.stack([t, slope * first, slope * (second - 2 * t * first * first)], 1)
        u, _, second = self.out(s).unbind(1)
        return torch.cat([second + u, u], 1)


def pinn():
    x = torch.linspace(-3, 3, 256)[:, None]
    edge = torch.where(x.abs() > 2.5, torch.sin(x), torch.zeros_like(x))
    return Zoo(PINN(), x, torch.cat([torch.zeros_like(x), edge], 1), "gaussian", "gaussian")


class Derivative(nn.Module):
    """The residual by ``torch.autograd.grad`` inside forward: its rows see another function."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.u(x)
            (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return torch.cat([second + u, u], 1)


class Graph(nn.Module):
    """Two convolutions of Kipf & Welling on a fixed graph, by a sparse product."""

    def __init__(self, nodes=24):
        super().__init__()
        ring = torch.arange(nodes)
        pairs = torch.stack([torch.cat([ring, ring]), torch.cat([ring, (ring + 1) % nodes])])
        pairs = torch.cat([pairs, pairs.flip(0)], 1)
        weights = torch.full((pairs.shape[1],), 0.25)
        self.register_buffer("adjacency", torch.sparse_coo_tensor(pairs, weights).coalesce())
        self.one, self.two = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = torch.tanh(torch.sparse.mm(self.adjacency, self.one(x)))
        return torch.sparse.mm(self.adjacency, self.two(h))


class ActorCritic(nn.Module):
    """Two heads on one body; a dict of both, or for the oracle one tensor."""

    def __init__(self):
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 1)
        self.flat = False

    def forward(self, x):
        h = torch.tanh(self.body(x))
        heads = {"policy": self.policy(h), "value": self.value(h)}
        return torch.cat(list(heads.values()), 1) if self.flat else heads


def actor_critic():
    from kfac_lab.core.likelihood import Gaussian, Joint

    g = torch.Generator().manual_seed(0)
    x = torch.randn(512, 6, generator=g)
    targets = {"policy": x[:, :4].argmax(1), "value": x.square().mean(1, keepdim=True)}
    joint = Joint(policy="categorical", value=Gaussian(scale=0.5))
    return Zoo(ActorCritic(), x, targets, joint, "actor_critic", cases=8)


def graph_data(nodes=24):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(nodes, 5, generator=g)
    return x, (x + x.roll(1, 0)).sum(1).gt(0).long() + (x[:, 0] > 1).long()


def gcn_sparse():
    return Zoo(Graph(), *graph_data(), whole=True, batch=24)


class Convolved(nn.Module):
    """``torch_geometric``'s GCN on a fixed graph."""

    def __init__(self, nodes=24):
        super().__init__()
        from torch_geometric.nn import GCNConv

        ring = torch.arange(nodes)
        edges = torch.stack([ring, (ring + 1) % nodes])
        self.register_buffer("edges", torch.cat([edges, edges.flip(0)], 1))
        self.one, self.two = GCNConv(5, 8), GCNConv(8, 3)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x, self.edges)), self.edges)


def gcn():
    return Zoo(Convolved(), *graph_data(), whole=True, batch=24)
