"""Small networks under the magnifying glass: F itself, and what K-FAC puts in its place, as dense
matrices (sections 3 and 4).

Everything here costs the square of the number of weights, and more. The engine uses none of it.

::

    import kfac_lab as kl
    from kfac_lab import study

    run = kl.Run("digits_classifier", "paper").advance(50)
    seen = study.look(run.problem, layers=[1])
    study.exact_fisher(seen) - study.khatri_rao(*study.moments(seen))
"""

from kfac_lab.study.applied import apply_structure
from kfac_lab.study.cumulants import Cumulants, cumulants
from kfac_lab.study.fisher import (
    FisherRows,
    Seen,
    chain_covariance,
    chain_precision,
    damped,
    diagonal_blocks,
    exact_fisher,
    khatri_rao,
    look,
    moments,
)
from kfac_lab.study.pictures import block_means
from kfac_lab.study.results import points, read, runs
from kfac_lab.study.subject import structure_run

__all__ = [
    "Cumulants",
    "FisherRows",
    "Seen",
    "apply_structure",
    "block_means",
    "chain_covariance",
    "chain_precision",
    "cumulants",
    "damped",
    "diagonal_blocks",
    "exact_fisher",
    "khatri_rao",
    "look",
    "moments",
    "points",
    "read",
    "runs",
    "structure_run",
]
