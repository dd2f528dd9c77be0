"""The laws of ``block``: one layer's curvature and its damped inverse (sections 3, 4 and 6.3).

P is the damped inverse as a map of matrices. Besides the common ones:

* ``wants_known``: wants names moments that there are, each once.
* ``shapes``: P keeps the shape, dense is square.
* ``linear``, ``symmetric``, ``positive_definite``: P is a symmetric positive definite matrix.
* ``equals_dense``: dense is the matrix of apply, for column-stacked vec.
* ``equals_its_factors``: where factors gives (Ā, G), dense is (Ā ⊗ G)⁻¹.
* ``falls_with_gamma``: a larger γ makes P no larger.
* ``damping_limit``: γ²P tends to the identity as γ grows, or P ignores γ.
* ``gamma_damps``: if λ or η makes a difference to P, γ does too.
* ``product_linear``, ``product_symmetric``, ``product_positive``: product is a symmetric positive
  semidefinite matrix (exempt: no product).
* ``inverts_its_product``: with little damping P undoes product.
* ``observe_weighs``, ``observe_means``, ``cotangents_even``: what observe keeps goes with the
  weight, is a mean over the cases, and does not know a cotangent's sign (exempt: no observe).
* ``keeps_no_moments``: factorise and damped keep no reference into the moments.
* ``asked_is_damped``: of the inverses that asks names, made_of makes what damped gives (exempt: no
  asks).
* ``previous_is_a_hint``: damped gives the same inverse from whatever was in use before.
* ``saved``: part_state, factorisation and inverse are saved without pickle and give the same P.
"""

from __future__ import annotations

from kfac_lab.testing.laws.block_inverse import (
    damping_limit,
    equals_dense,
    equals_its_factors,
    falls_with_gamma,
    gamma_damps,
    linear,
    positive_definite,
    shapes,
    symmetric,
    wants_known,
)
from kfac_lab.testing.laws.block_product import (
    inverts_its_product,
    product_linear,
    product_positive,
    product_symmetric,
)
from kfac_lab.testing.laws.block_shown import (
    ForeignInverse,
    asked_is_damped,
    cotangents_even,
    keeps_no_moments,
    observe_means,
    observe_weighs,
    previous_is_a_hint,
    reread,
    saved,
)
from kfac_lab.testing.laws.block_subjects import (
    DENSE,
    GAMMAS,
    P_LAWS,
    SLOT,
    awkward,
    factored,
    inverse_of,
    matrix_of,
    observes,
    run,
    shape_of,
    strength,
    subjects,
)

__all__ = [
    "DENSE",
    "GAMMAS",
    "P_LAWS",
    "SLOT",
    "ForeignInverse",
    "asked_is_damped",
    "awkward",
    "cotangents_even",
    "damping_limit",
    "equals_dense",
    "equals_its_factors",
    "factored",
    "falls_with_gamma",
    "gamma_damps",
    "inverse_of",
    "inverts_its_product",
    "keeps_no_moments",
    "linear",
    "matrix_of",
    "observe_means",
    "observe_weighs",
    "observes",
    "positive_definite",
    "previous_is_a_hint",
    "product_linear",
    "product_positive",
    "product_symmetric",
    "reread",
    "run",
    "saved",
    "shape_of",
    "shapes",
    "strength",
    "subjects",
    "symmetric",
    "wants_known",
]


Stranger = ForeignInverse  # its former name
