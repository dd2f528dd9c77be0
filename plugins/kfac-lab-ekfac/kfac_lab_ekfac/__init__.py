"""EKFAC for kfac_lab (George et al. 2018): the block and the recipe ``ekfac``."""

from __future__ import annotations

from collections.abc import Callable

from kfac_lab import hookimpl
from kfac_lab_ekfac.block import Ekfac, EkfacFactors, EkfacInverse
from kfac_lab_ekfac.recipe import EKFAC

__all__ = ["Ekfac", "EkfacFactors", "EkfacInverse"]

kfac_lab_api = 1


@hookimpl
def kfac_register_blocks(register: Callable[..., None]) -> None:
    """The block."""
    register(
        "ekfac",
        Ekfac,
        summary="the factors' eigenbasis, second moments measured in it",
        reference="George et al. 2018",
    )


@hookimpl
def kfac_register_recipes(register: Callable[..., None]) -> None:
    """The paper's recipe with that block, its scales in use at every step."""
    register(
        "ekfac",
        EKFAC,
        summary="the paper's settings with EKFAC: scales every step, eigenbases every T3",
        reference="George et al. 2018",
    )
