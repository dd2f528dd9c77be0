"""Whether steps fit what is peculiar to their batch: what they promised against what came of it.

λ is moved by ρ, which compares h before and after a step on one and the same batch (section 6.5),
dropout's mask included. Where batches are small that says little of the next one: a step may keep
its word each time, λ fall, and h on fresh batches stay where it is.
"""

from __future__ import annotations

import numpy as np

from kfac_lab.history import History

__all__ = ["LOOKS", "fits_noise"]

LOOKS = 60  # the step after which it is looked at, once
ENDS = 10  # steps at both ends whose h is averaged
PROMISED = 2.0  # of h, by all steps together
KEPT = 0.95  # of h, at the least, that is still there


def fits_noise(history: History, batch: int) -> str | None:
    """The sentence, where the first steps promised far more than came of them; reads the history.

    ``batch`` is m of the last step.
    """
    losses, predicted = np.asarray(history["loss"]), np.asarray(history["predicted"])
    if len(losses) != LOOKS:
        return None
    first = float(losses[:ENDS].mean())
    last = float(losses[-ENDS:].mean())
    promised = -float(np.nansum(predicted))
    if not (promised > PROMISED * first > 0 and last > KEPT * first):
        return None
    return (
        f"{LOOKS} steps promised to lower h by {promised:.3g} in all, each on its own batch, and h "
        f"of fresh batches went from {first:.3g} to {last:.3g}: the steps fit what is peculiar to "
        f"batches of {batch} (their cases, a dropout's mask); give larger batches, or "
        "recipe='amortised', whose steps have a length of their own"
    )
