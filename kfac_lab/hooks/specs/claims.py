"""The hooks by which modules and losses are claimed."""

from __future__ import annotations

from typing import Any

from kfac_lab.hooks.specs.markers import hookspec


@hookspec
def kfac_claim_layer(module: Any, path: str) -> Any:
    """Claims a module: answers its Layer (``core.protocols.Layer``), or None for what is not yours.

    Asked at attach for every module with parameters, by exact type: a subclass may compute
    something else (``core.claims.computes_as`` tells those that do not). Outsiders go before
    built-ins; two outsiders that claim one module are an error naming both, unless the recipe says
    ``layers={"ClassName": "dist/name"}``. A module with several matrices is a tuple of Layers, each
    with the module that holds its parameters; a module that you know but cannot serve is
    ``core.layers.Declined("why, and what to do")``.

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    class Mixed(torch.nn.Module):
        '''y = x W with W stored [in, out], and no bias.'''

        def __init__(self, d_in, d_out):
            super().__init__()
            self.mix = torch.nn.Parameter(torch.randn(d_in, d_out) / d_in**0.5)

        def forward(self, x):
            return x @ self.mix


    @dataclasses.dataclass(frozen=True, eq=False)
    class MixedLayer:
        module: Mixed
        path: str
        names = ("mix",)

        @property
        def d_out(self):
            return self.module.mix.shape[1]

        @property
        def d_in(self):
            return self.module.mix.shape[0]

        def rows_in(self, inputs):
            return inputs.reshape(len(inputs), -1, self.d_in)

        def rows_out(self, gradients):
            return gradients.reshape(len(gradients), -1, self.d_out)

        def pack(self, tensors):
            return tensors[0].t().contiguous()

        def unpack(self, matrix):
            return (matrix.t(),)


    @kl.hookimpl
    def kfac_claim_layer(module, path):
        return MixedLayer(module, path) if type(module) is Mixed else None
    ```
    """


@hookspec
def kfac_claim_likelihood(loss: Any) -> Any:
    """Claims a loss: answers its Likelihood (``core.likelihood.Likelihood``), or None for what is
    not yours. Asked for whatever ``likelihood=`` is given that is no Likelihood; torch's own losses
    are claimed by the box, as the log-likelihoods that they are, unless an outsider does.

    ```python
    import dataclasses

    import torch

    import kfac_lab as kl


    class WaitingTime(torch.nn.Module):
        '''Times y > 0 with rate exp(z): −log r(y|z) = exp(z) y − z, a mean over all outputs.'''

        def forward(self, outputs, targets):
            return (torch.exp(outputs) * targets - outputs).mean()


    @dataclasses.dataclass(frozen=True)
    class Exponential:
        '''exp(z) y is 1 on average with variance 1 whatever z is: F_R = B = I, over the outputs.'''

        def loss(self, outputs, targets):
            if targets.shape != outputs.shape:
                raise ValueError(f"one time for each of {outputs.shape}, not {targets.shape}")
            return (torch.exp(outputs) * targets - outputs).flatten(1).mean(1)

        def gradient(self, outputs, targets):
            return (torch.exp(outputs) * targets - 1) / outputs[0].numel()

        def sampled_gradient(self, outputs, uniforms):
            return (-torch.log(uniforms) - 1) / outputs[0].numel() ** 0.5  # E[ggᵀ] = F_R

        def factor_transposed(self, outputs, tangents):
            return tangents / outputs[0].numel() ** 0.5

        def fisher(self, outputs, tangents):
            return tangents / outputs[0].numel()

        def factor_columns(self, outputs):
            return outputs[0].numel()

        def factor_column(self, outputs, column):
            result = torch.zeros_like(outputs).flatten(1)
            result[:, column] = 1 / outputs[0].numel() ** 0.5
            return result.view_as(outputs)

        def error(self, outputs, targets):
            return (torch.exp(-outputs) - targets).square().flatten(1).sum(1)

        def mean(self, outputs):
            return torch.exp(-outputs)


    @kl.hookimpl
    def kfac_claim_likelihood(loss):
        return Exponential() if type(loss) is WaitingTime else None
    ```
    """
