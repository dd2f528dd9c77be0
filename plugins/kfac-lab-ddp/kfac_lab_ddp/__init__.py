"""Several processes as one: collective ``distributed``, structure ``sharded``."""

from __future__ import annotations

from collections.abc import Callable

from kfac_lab import hookimpl
from kfac_lab_ddp.collective import Distributed
from kfac_lab_ddp.sharded import Sharded, ShardedFactors

__all__ = ["Distributed", "Sharded", "ShardedFactors"]

kfac_lab_api = 1


@hookimpl
def kfac_register_collectives(register: Callable[..., None]) -> None:
    """Means over processes."""
    register(
        "distributed",
        Distributed,
        summary="means over the processes of torch.distributed",
        reference="Osawa et al. 2019",
    )


@hookimpl
def kfac_register_structures(register: Callable[..., None]) -> None:
    """Inversion shared out."""
    register(
        "sharded",
        Sharded,
        summary="another structure, each block inverted by one process",
        reference="Osawa et al. 2019",
    )
