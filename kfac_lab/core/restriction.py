"""The former home of :class:`~kfac_lab.core.subspace.SubspaceQuadratic`, for whoever imports it."""

from kfac_lab.core.subspace import SubspaceQuadratic as Restriction

__all__ = ["Restriction"]
