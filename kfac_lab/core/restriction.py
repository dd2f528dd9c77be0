"""The former home of :class:`~kfac_lab.core.subspace.SubspaceModel`, for whoever imports it."""

from kfac_lab.core.subspace import SubspaceModel as Restriction

__all__ = ["Restriction"]
