"""Small models of the kinds that people bring: what each is, and a batch for it.

Those of ``transformers`` and ``torch_geometric`` are made from small configs, with random weights.
Of vision models ResNet, ConvNeXt, ViT and Swin are those of ``transformers`` too, and the blocks of
MobileNetV3 are written out: ``timm`` cannot be imported without torchvision.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


@dataclass
class Zoo:
    """One exhibit.

    Args:
        model: outputs are one tensor.
        inputs, targets: a training set.
        likelihood: what the engine is given.
        kind: the same for the oracle, as a key of its own.
        whole: the cases are coupled: a case's outputs come out of a pass over the whole batch.
        cases: how many cases the oracle looks at.
    """

    model: nn.Module
    inputs: Tensor
    targets: Any
    likelihood: Any = "categorical"
    kind: str = "categorical"
    whole: bool = False
    cases: int = 3
    batch: int = 64

    def flatten(self):
        """From here on the model gives one tensor, whatever it has for heads."""
        if isinstance(self.model, ActorCritic):
            self.model.flat = True


class Logits(nn.Module):
    """A model of ``transformers`` as a function of one tensor to its logits."""

    def __init__(self, model, name, **named):
        super().__init__()
        self.model, self.name, self.named = model, name, named

    def forward(self, x):
        return self.model(**{self.name: x}, **self.named).logits


def tokens(cases=512, length=8, vocabulary=12, seed=0):
    """Sequences of which each token follows from the two before it."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, vocabulary, (cases, length + 1), generator=g)
    for t in range(2, length + 1):
        x[:, t] = (x[:, t - 1] + x[:, t - 2]) % vocabulary
    return x


def pictures(cases=512, channels=1, size=8, classes=4, seed=0):
    """A bright quarter says the class."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(cases, channels, size, size, generator=g) * 0.5
    y = torch.randint(0, classes, (cases,), generator=g)
    half = size // 2
    for n, c in enumerate(y.tolist()):
        row, column = (c // 2 % 2) * half, (c % 2) * half
        x[n, :, row : row + half, column : column + half] += 1
    return x, y


# --- transformers ---------------------------------------------------------------------------------


def gpt2(tied=True):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=12, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2,
        use_cache=False, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    x = tokens()
    return Zoo(
        Logits(GPT2LMHeadModel(config), "input_ids"), x[:, :-1].contiguous(), x[:, 1:].contiguous()
    )


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=4, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    x = tokens()[:, :-1].contiguous()
    return Zoo(Logits(BertForSequenceClassification(config), "input_ids"), x, x[:, 3] % 4)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=12, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
        initializer_range=0.2, use_cache=False, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    x = tokens()
    return Zoo(
        Logits(LlamaForCausalLM(config), "input_ids"), x[:, :-1].contiguous(), x[:, 1:].contiguous()
    )


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        image_size=8, patch_size=4, num_channels=1, num_labels=4, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return Zoo(Logits(ViTForImageClassification(config), "pixel_values"), *pictures())


class WhisperTagger(nn.Module):
    """Whisper's decoder over the states of its encoder; logits for each token."""

    def __init__(self):
        super().__init__()
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperDecoder

        config = WhisperConfig(
            vocab_size=12, d_model=16, decoder_layers=1, decoder_attention_heads=2,
            decoder_ffn_dim=24, max_target_positions=16, dropout=0.0, attention_dropout=0.0,
            activation_dropout=0.0, init_std=0.2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
            decoder_start_token_id=0, use_cache=False, encoder_layers=1,
        )  # fmt: skip
        self.decoder = WhisperDecoder(config)
        self.head = nn.Linear(16, 12, bias=False)
        g = torch.Generator().manual_seed(2)
        self.register_buffer("heard", torch.randn(1, 5, 16, generator=g))

    def forward(self, x):
        heard = self.heard.expand(len(x), -1, -1)
        state = self.decoder(input_ids=x, encoder_hidden_states=heard).last_hidden_state
        return self.head(state)


def whisper():
    x = tokens()
    return Zoo(WhisperTagger(), x[:, :-1].contiguous(), x[:, 1:].contiguous())


def resnet():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic",
        num_labels=4,
    )  # fmt: skip
    return Zoo(Logits(ResNetForImageClassification(config), "pixel_values"), *pictures(size=16))


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(
        num_channels=1, patch_size=2, num_stages=2, hidden_sizes=[4, 6], depths=[1, 1],
        num_labels=4, layer_scale_init_value=0.5, initializer_range=0.2,
    )  # fmt: skip
    return Zoo(Logits(ConvNextForImageClassification(config), "pixel_values"), *pictures())


def swin():
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=8, patch_size=2, num_channels=1, embed_dim=8, depths=[2], num_heads=[2],
        window_size=2, num_labels=4, initializer_range=0.2, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, drop_path_rate=0.0, mlp_ratio=2.0,
    )  # fmt: skip
    return Zoo(Logits(SwinForImageClassification(config), "pixel_values"), *pictures())


# --- written out ----------------------------------------------------------------------------------


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


ZOO = {
    "gpt2": gpt2,
    "gpt2_untied": lambda: gpt2(tied=False),
    "bert": bert,
    "llama": llama,
    "vit": vit,
    "whisper": whisper,
    "resnet": resnet,
    "convnext": convnext,
    "swin": swin,
    "mobilenetv3": mobilenetv3,
    "lstm_tagger": lstm_tagger,
    "lstm_tagger_time_first": lambda: lstm_tagger(batch_first=False),
    "unet": unet,
    "experts": experts,
    "vae": vae,
    "pinn": pinn,
    "actor_critic": actor_critic,
    "gcn": gcn,
    "gcn_sparse": gcn_sparse,
}


def made(name, seed=0):
    """The exhibit of that name, in float64 and with frozen statistics."""
    torch.manual_seed(seed)
    zoo = ZOO[name]()
    zoo.model.double()
    if zoo.inputs.is_floating_point():
        zoo.inputs = zoo.inputs.double()
    zoo.targets = tree_map(lambda t: t.double() if t.is_floating_point() else t, zoo.targets)
    with torch.no_grad():  # no parameter at a special value
        for p in zoo.model.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype))
    zoo.model.train()
    with torch.no_grad():
        zoo.model(zoo.inputs[: zoo.batch])
    zoo.model.eval()
    return zoo
