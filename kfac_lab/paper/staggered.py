"""A schedule whose refreshes are spread over steps, so that none is dear (section 8)."""

from __future__ import annotations

from dataclasses import dataclass

from kfac_lab.core.parameters import parameter
from kfac_lab.paper.schedules import Periodic

__all__ = ["Staggered"]


@dataclass(frozen=True)
class Staggered(Periodic):
    """``periodic``, the work of a refresh spread over ``spread`` steps from the one it is due at.

    That step leaves its moments as they are, the steps after it go on with the inverse in use and
    build a share of the new one each, layer by layer, and the last of them has the new inverse:
    it is ``spread`` − 1 steps older than ``periodic`` would have it. At k ≤ burn_in, and with a
    spread of 1 always, a refresh is made at once. What is no sum of layers, such as
    ``block_tridiagonal``, is built in one piece, by the last of the steps. On CUDA all of it is
    begun by the step after the first, on a stream of its own, and the last waits for it.
    """

    spread: int = parameter(8, section="8", low=1, help="steps over which a refresh is spread")

    def check(self) -> str | None:
        """As for ``periodic``; a refresh must end before the next begins."""
        if self.spread > self.T3:
            return (
                f"spread={self.spread} must not be above T3={self.T3}: a refresh ends before the "
                "next one begins"
            )
        return super().check()

    def spread_over(self, step: int) -> int:
        """See ``core.protocols.Schedule``."""
        return 1 if step <= self.burn_in else self.spread
