"""Which modules of an exhibit the row oracle can watch, and what a row of each is."""

from torch.nn import functional

from .oracle import Rows


def watched(model):
    """Path → Rows, of every module whose rows are known here. Hooks stay until they are removed."""
    found = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        made = KINDS.get(kind)
        if made is not None and module.weight.requires_grad:
            bias = getattr(module, "bias", None) is not None
            found[path] = Rows(module, made(module), bias)
    return found


def linear(module):
    return lambda x: x.reshape(-1, x.shape[-1])


def embedding(module):
    def hot(x):
        return functional.one_hot(x.reshape(-1), module.num_embeddings).to(module.weight.dtype)

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


KINDS = {
    "Linear": linear,
    "Conv1D": linear,  # that of GPT-2
    "Embedding": embedding,
    "Conv2d": convolution,
}
