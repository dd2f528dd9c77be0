"""Small models of the kinds that people bring, by name."""

import torch
from torch.utils._pytree import tree_map

from .transformed import bert, convnext, gpt2, llama, resnet, swin, vit, whisper
from .written import (
    actor_critic,
    experts,
    gcn,
    gcn_sparse,
    lstm_tagger,
    mobilenetv3,
    pinn,
    unet,
    vae,
)

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
