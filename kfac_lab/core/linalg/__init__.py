"""Damped inverses that say when they fail, and the one function that reads from a device.

Every factorisation here goes the same way: symmetrise, add the shift, check that the numbers are
finite, factorise, check again. What came of it is a 0-dim **status** on the device, not an
exception: 1 for good, 0 for failed, -1 where the numbers that came in were not finite already. A
failed result is NaN throughout, so nothing downstream can take it for an answer.

Who looks at the status, and when:

- Inside an :class:`Attempt` nothing does until its owner reads all of them at once with
  :func:`host`. Calls that failed are then tried again one level up, the others as before::

      attempt = Attempt()
      while True:
          with attempt:
              ...  # factorise, invert; components know nothing of the attempt
          failed = attempt.failed(host(attempt.flags()))
          again = attempt.escalate(failed)
          if again is None:
              break  # all is well, or nothing is left to try: see `attempt.error(failed)`
          attempt = again

- Outside any attempt, on the CPU, where looking costs nothing, each call looks for itself,
  escalates, warns of what it added and raises `NumericalError` in the end. Outside any attempt on
  an accelerator nobody looks: a failed result is NaN.

The levels are in :data:`LADDER`: as it is, jitter relative to the mean diagonal, float64.

Only what leaves the device alone is used: `cholesky_ex` and triangular solves. `cholesky_inverse`
and `eigh` look at their status on the host: the first serves the CPU only, the second sits in
:func:`eigh` alone and belongs on refresh steps. Everything takes float32 and float64, gives back
what it was given, and runs on the meta device.
"""

from __future__ import annotations

from kfac_lab.core.linalg.aligned import product
from kfac_lab.core.linalg.attempt import Attempt, guarded, label
from kfac_lab.core.linalg.batched import Asked, batches, damped_inverses
from kfac_lab.core.linalg.calls import LADDER, Call, Failure, Outcome, Rung, Scalar
from kfac_lab.core.linalg.cholesky import (
    cholesky_inverse,
    cholesky_root,
    damped_inverse,
    inverse_root,
)
from kfac_lab.core.linalg.eigen import Eigen, eigenpairs, eigh, spectral_power
from kfac_lab.core.linalg.ends import finished, precision, prepared
from kfac_lab.core.linalg.failing import numerical_error
from kfac_lab.core.linalg.reading import host
from kfac_lab.core.linalg.symmetric import eye_like, symmetrise

__all__ = [
    "LADDER",
    "Asked",
    "Attempt",
    "Call",
    "Eigen",
    "Failure",
    "Outcome",
    "Rung",
    "Scalar",
    "batches",
    "cholesky_inverse",
    "cholesky_root",
    "damped_inverse",
    "damped_inverses",
    "eigenpairs",
    "eigh",
    "eye_like",
    "finished",
    "guarded",
    "host",
    "inverse_root",
    "label",
    "numerical_error",
    "precision",
    "prepared",
    "product",
    "spectral_power",
    "symmetrise",
]
