"""KFAC and Preconditioner: the familiar faces of the engine, for one's own training loop.

``KFAC`` is the whole algorithm on the batches that you hand over; ``Preconditioner`` leaves the
loop, the loss and the optimiser to you and turns ``p.grad`` into the preconditioned gradient. Both
see the model through its layers, so they take the module, not its parameters.
"""

from kfac_lab.optim.kfac import KFAC
from kfac_lab.optim.preconditioner import Preconditioner

__all__ = ["KFAC", "Preconditioner"]
