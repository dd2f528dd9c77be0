"""Which modules of an exhibit the row oracle can watch, and what a row of each is."""

import functools

import torch
from torch.nn import functional

from .oracle import Rows


def watched(model):
    """Path → Rows, of every module whose rows are known here. Hooks stay until they are removed."""
    found = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        if kind == "LSTM":
            found |= recurrent(path, module)
            continue
        made = KINDS.get(kind)
        if made is not None and module.weight.requires_grad:
            bias = getattr(module, "bias", None) is not None
            found[path] = Rows(module, made(module), bias)
    return found


def linear(module):
    return lambda x: x.reshape(-1, x.shape[-1])


def embedding(module):
    def hot(x):
        tokens = x.reshape(-1)
        rows = functional.one_hot(tokens, module.num_embeddings).to(module.weight.dtype)
        return (
            rows if module.padding_idx is None else rows * (tokens != module.padding_idx)[:, None]
        )

    return hot


def convolution(module):
    """Patches; a place and a group make a row."""

    def patches(x):
        cut = functional.unfold(
            x, module.kernel_size, module.dilation, module.padding, module.stride
        )
        width = module.weight[0].numel()
        return cut.transpose(1, 2).reshape(-1, width)

    return patches


def transposed(module):
    """Patches of the input with zeros between its places; a place of the output makes a row."""
    (k, *_), (s, *_), (p, *_) = module.kernel_size, module.stride, module.padding

    def patches(x):
        cases, channels, height, width = x.shape
        apart = x.new_zeros(cases, channels, (height - 1) * s + 1, (width - 1) * s + 1)
        apart[:, :, ::s, ::s] = x
        cut = functional.unfold(functional.pad(apart, [k - 1 - p] * 4), k)
        return cut.transpose(1, 2).reshape(-1, channels * k * k)

    return patches


def positions(module):
    """A table whose rows are taken in their order, by the length of what it is called on."""
    return lambda x: torch.eye(x.shape[1], module.num_embeddings, dtype=module.weight.dtype)


class Map(Rows):
    """One map of a recurrent module that is run by hand."""

    def __init__(self, module, bias):
        self.module, self.bias, self.rows_of = module, bias, lambda x: x
        self.forget()

    def through(self, x, weight, bias):
        out = functional.linear(x, weight, bias)
        self.inputs.append(x.detach())
        self.outputs.append(out)
        return out

    def remove(self):
        vars(self.module).pop("forward", None)


def recurrent(path, module):
    """The maps of an LSTM's inputs and states, of each layer and direction: it is run by hand."""
    suffixes = [
        f"_l{n}{way}"
        for n in range(module.num_layers)
        for way in ("", "_reverse")[: 1 + module.bidirectional]
    ]
    maps = {f"{kind}{s}": Map(module, module.bias) for s in suffixes for kind in ("ih", "hh")}
    module.forward = functools.partial(by_hand, module, maps)
    return {f"{path}.{name}": rows for name, rows in maps.items()}


def by_hand(module, maps, given):
    """An LSTM over ``[N, T, I]`` or with time first, gate by gate, from states of 0."""
    x = given if module.batch_first else given.transpose(0, 1)
    length = x.shape[1]
    for n in range(module.num_layers):
        sides = []
        for way in ("", "_reverse")[: 1 + module.bidirectional]:
            of = {name: getattr(module, f"{name}_l{n}{way}") for name in NAMES}
            h = c = x.new_zeros(len(x), module.hidden_size)
            outputs = [None] * length
            for t in reversed(range(length)) if way else range(length):
                ih = maps[f"ih_l{n}{way}"].through(x[:, t], of["weight_ih"], of["bias_ih"])
                hh = maps[f"hh_l{n}{way}"].through(h, of["weight_hh"], of["bias_hh"])
                i, f, g, o = (ih + hh).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = outputs[t] = o.sigmoid() * c.tanh()
            sides.append(torch.stack(outputs, 1))
        x = torch.cat(sides, -1)
    x = x if module.batch_first else x.transpose(0, 1)
    torch.testing.assert_close(x, type(module).forward(module, given)[0])
    return x, None


NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
KINDS = {
    "Linear": linear,
    "Conv1D": linear,  # that of GPT-2
    "Embedding": embedding,
    "Conv2d": convolution,
    "ConvTranspose2d": transposed,
    "WhisperPositionalEmbedding": positions,
}
